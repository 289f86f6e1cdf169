"""Lightning fits in other micro-batches have the gradients that they had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import outcomes
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from micro_batching import (
    STEPS,
    TUNED,
    Gradients,
    Reader,
    apart,
    both,
    trained,
)

from energy_plugins.lightning import MicroBatchTuner

one_thread = outcomes.one_thread
pytestmark = pytest.mark.usefixtures("one_thread")

WAYS = [(12, 1, 4), (12, 2, 6), (4, 4, 8), (2, 6, 12), (8, 3, 4)]
"""Batch, accumulation and micro-batch: split, and merged."""


@pytest.mark.parametrize(("batch", "accumulation", "size"), WAYS)
class TestGradients:
    def test_each_of_20_steps_has_the_same_in_single_precision(
        self, tmp_path: Path, batch: int, accumulation: int, size: int
    ) -> None:
        plain, tuned, tuner, model = both(tmp_path, Reader, batch, accumulation, size, free=False)
        assert tuner.found is not None
        assert tuner.found.chosen == size
        passes = batch * accumulation // size
        assert set(model.sizes[-TUNED * passes :]) == {size}
        assert len(plain.gradients) == len(tuned.gradients) == STEPS
        for one, other in zip(plain.gradients, tuned.gradients, strict=True):
            assert apart(one, other) <= 1e-6

    def test_20_steps_in_a_row_stay_together_in_double_precision(
        self, tmp_path: Path, batch: int, accumulation: int, size: int
    ) -> None:
        settings = {"precision": "64-true", "gradient_clip_val": 0.4}
        plain, tuned, _, model = both(tmp_path, Reader, batch, accumulation, size, free=True, **settings)
        assert apart(plain.parameters[0], plain.parameters[-1]) > 0.03
        assert max(norm(one) for one in plain.gradients) > 0.4  # some are clipped
        assert set(model.sizes[-TUNED * batch * accumulation // size :]) == {size}
        for one, other in zip(plain.gradients, tuned.gradients, strict=True):
            assert apart(one, other) <= 1e-9
        assert apart(plain.parameters[-1], tuned.parameters[-1]) <= 1e-9


def norm(gradients: list[torch.Tensor]) -> float:
    return float(torch.cat([one.flatten() for one in gradients]).norm())


class TestMixedPrecision:
    @pytest.mark.parametrize(("batch", "accumulation", "size"), [(12, 1, 4), (4, 4, 8)])
    def test_losses_are_scaled_as_they_were(self, tmp_path: Path, batch: int, accumulation: int, size: int) -> None:
        settings: dict[str, Any] = {"rows": STEPS * batch * accumulation, "batch": batch, "gradient_clip_val": 0.5}
        settings["accumulate_grad_batches"] = accumulation
        seen: list[Gradients] = []
        states, tuner = [], MicroBatchTuner(size=size)
        for callbacks in ([], [tuner]):
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=3)
            plugin = MixedPrecision("16-mixed", "cpu", scaler)
            gradients = Gradients(seen[0].parameters if seen else ())
            trained(tmp_path, Reader(), *callbacks, gradients, plugins=[plugin], **settings)
            seen.append(gradients)
            states.append(scaler.state_dict())
        assert tuner.found is not None
        assert tuner.found.chosen == size
        # At the edge a pass of more samples overflows a little earlier, and one of fewer a little later.
        assert 0.5 <= states[1]["scale"] / states[0]["scale"] <= 2
        assert states[0]["scale"] < 2**20  # the first steps overflowed
        finite = [pair for pair in zip(*(one.gradients for one in seen), strict=True) if all(map(_finite, pair))]
        assert len(finite) > STEPS / 3
        assert all(apart(one, other) <= 1e-2 for one, other in finite)

    @pytest.mark.parametrize(("batch", "accumulation", "size"), [(12, 1, 4), (4, 4, 8)])
    def test_of_16_bits_without_scaling(self, tmp_path: Path, batch: int, accumulation: int, size: int) -> None:
        plain, tuned, tuner, _ = both(tmp_path, Reader, batch, accumulation, size, free=False, precision="bf16-mixed")
        assert tuner.found is not None
        assert (tuner.found.chosen, tuner.found.gradient_limit) == (size, 1e-3)
        for one, other in zip(plain.gradients, tuned.gradients, strict=True):
            assert apart(one, other) <= 3e-2


def _finite(gradients: list[torch.Tensor]) -> bool:
    return all(bool(one.isfinite().all()) for one in gradients)


class TestEndsOfEpochs:
    @pytest.mark.parametrize(("batch", "accumulation", "size"), [(4, 4, 8), (4, 4, 16), (12, 2, 4), (6, 3, 18)])
    @pytest.mark.parametrize("rows", [5, 17, 30])
    def test_windows_cut_short_and_ragged_batches_give_what_they_gave(
        self, tmp_path: Path, batch: int, accumulation: int, size: int, rows: int
    ) -> None:
        """Lightning divides by the accumulation all the same, and a mean of few samples weighs as much as of many."""
        rows += 2 * batch * accumulation
        plain, tuned, tuner, _ = both(
            tmp_path, Reader, batch, accumulation, size, free=True, rows=rows, max_epochs=3, precision="64-true"
        )
        assert tuner.found is not None
        assert tuner.found.chosen == size
        assert len(plain.gradients) == len(tuned.gradients) >= 9
        for one, other in zip(plain.gradients, tuned.gradients, strict=True):
            assert apart(one, other) <= 1e-9
