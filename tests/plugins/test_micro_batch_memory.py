"""Lightning fits that run out of memory in one micro-batch go on in another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import outcomes
import pytest
import torch
from micro_batching import (
    STEPS,
    Gradients,
    Reader,
    apart,
    both,
    trained,
)
from outcomes import our_warnings

from energy_plugins.lightning import MicroBatchTuner

one_thread = outcomes.one_thread
pytestmark = pytest.mark.usefixtures("one_thread")


class TooLarge(Reader):
    """Runs out of memory with more samples than there are words, from some pass on, forward or backward."""

    fails_from = 0
    most = 8
    backward_too = False
    error: type[Exception] = torch.OutOfMemoryError

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if len(batch["input_ids"]) > self.most and len(self.sizes) > self.fails_from:
            if not self.backward_too:
                raise self.error("CUDA out of memory. Tried to allocate more")
            # The last of the gradients: those of other layers are there already.
            self.hook = next(self.layers.parameters()).register_hook(self._fail)
        return loss

    def _fail(self, gradient: torch.Tensor) -> None:
        self.fails_from = 1 << 30
        self.hook.remove()
        raise self.error("CUDA out of memory. Tried to allocate more")


class TestOutOfMemory:
    @pytest.mark.parametrize(("batch", "accumulation", "fits"), [(12, 1, 8), (12, 2, 8), (12, 1, 4)])
    def test_batches_that_only_fit_in_parts_run_in_parts(
        self, tmp_path: Path, batch: int, accumulation: int, fits: int
    ) -> None:
        class Filling(TooLarge):
            most = fits

        settings: dict[str, Any] = {"rows": 20 * batch, "batch": batch, "accumulate_grad_batches": accumulation}
        plain, tuned, tuner, model = Gradients(), Gradients(), MicroBatchTuner(size=4), Filling()
        trained(tmp_path, Reader(), plain, precision="64-true", **settings)
        trained(tmp_path, model, tuned, tuner, precision="64-true", **settings)
        assert tuner.found is not None
        assert tuner.found.chosen == 4
        for one, other in zip(plain.gradients, tuned.gradients, strict=True):
            assert apart(one, other) <= 1e-9

    def test_a_size_that_never_fits_is_not_used(self, tmp_path: Path) -> None:
        with our_warnings() as texts:
            plain, tuned, tuner, _ = both(tmp_path, TooLarge, 4, 4, 16, free=True, precision="64-true")
        assert any("16 samples at once: it does not fit into memory" in text for text in texts)
        assert tuner.found is not None
        assert tuner.found.chosen is None
        assert apart(plain.gradients[-1], tuned.gradients[-1]) <= 1e-9

    @pytest.mark.parametrize(
        ("backward", "kind"),
        [(False, torch.OutOfMemoryError), (True, torch.OutOfMemoryError), (False, MemoryError)],
    )
    @pytest.mark.parametrize("size", [8, 16])
    def test_one_that_fits_no_longer_is_given_up_and_nothing_is_lost_or_made_twice(
        self, tmp_path: Path, size: int, backward: bool, kind: type[Exception]
    ) -> None:
        class Later(TooLarge):
            fails_from = 20
            most = 4
            backward_too = backward
            error = kind

        plain, tuned, _, model = both(tmp_path, Later, 4, 4, size, free=True, precision="64-true")
        assert size in model.sizes
        assert set(model.sizes[-10:]) == {4}
        assert len(plain.gradients) == len(tuned.gradients) == STEPS
        for one, other in zip(plain.gradients, tuned.gradients, strict=True):
            assert apart(one, other) <= 1e-9
