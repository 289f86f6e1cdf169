"""What the check of gradients leaves as it was in a Lightning fit."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import outcomes
import pytest
import torch
from micro_batching import (
    WORDS,
    OfSentences,
    OfTokens,
    Reader,
    apart,
    both,
    trained,
)
from outcomes import our_warnings
from torch.nn import functional

from energy_plugins.lightning import MicroBatchTuner

one_thread = outcomes.one_thread
pytestmark = pytest.mark.usefixtures("one_thread")


class Keeps(Reader):
    """What many modules do in a step beside returning a loss: they count, and keep losses for the epoch's end."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[float] = []
        self.seen: dict[str, int] = {}
        self.calls = 0

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
        self.calls += 1
        self.outputs.append(float(len(batch["labels"])))
        self.seen["samples"] = self.seen.get("samples", 0) + len(batch["labels"])
        return super().training_step(batch, batch_idx)


class Takes(Reader):
    """What many modules do with a batch that is a dict."""

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return super().loss({"labels": batch.pop("labels"), **batch})


class Shifts(Reader):
    """Each time it sees a batch there are other words in it."""

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        batch["input_ids"].add_(1).remainder_(WORDS)
        return super().loss(batch)


class TestWhatTheCheckLeaves:
    @pytest.mark.parametrize(
        ("model", "batch", "accumulation", "size"), [(Takes, 8, 1, 2), (Shifts, 8, 1, 2), (Shifts, 2, 4, 8)]
    )
    def test_batches_that_a_step_changes_are_as_the_loader_made_them(
        self, tmp_path: Path, model: type[Reader], batch: int, accumulation: int, size: int
    ) -> None:
        plain, tuned, tuner, _ = both(tmp_path, model, batch, accumulation, size, free=False)
        assert tuner.found is not None
        assert tuner.found.chosen == size
        assert max(map(apart, plain.gradients, tuned.gradients)) <= 1e-6

    def test_what_a_module_counts_and_keeps_is_as_it_was(self, tmp_path: Path) -> None:
        class Unequal(Keeps, OfTokens):
            """Whose loss is declined."""

        model = Unequal()
        with our_warnings() as texts:
            trained(tmp_path, model, MicroBatchTuner(size=2), rows=32, batch=8)
        assert any("the gradients would not be the same" in text for text in texts)
        assert model.calls == 4
        assert model.outputs == [8.0] * 4
        assert model.seen == {"samples": 32}

    def test_generators_of_a_module_draw_what_they_would_have(self, tmp_path: Path) -> None:
        class Noisy(OfTokens):
            """Whose loss is declined."""

            def __init__(self) -> None:
                super().__init__()
                self.drawn = torch.Generator().manual_seed(1)
                self.chances: list[Any] = [np.random.default_rng(2), Random(3)]

            def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
                noise = torch.rand((), generator=self.drawn) + sum(float(one.random()) for one in self.chances)
                return torch.as_tensor(super().loss(batch) * noise)

        with our_warnings() as texts:
            plain, tuned, _, _ = both(tmp_path, Noisy, 8, 1, 2, free=True)
        assert any("the gradients would not be the same" in text for text in texts)
        assert all(map(torch.equal, plain.gradients[-1], tuned.gradients[-1]))

    @pytest.mark.parametrize(("batch", "accumulation", "size"), [(8, 1, 2), (2, 4, 8)])
    def test_a_teacher_that_follows_in_each_pass_is_where_it_was(
        self, tmp_path: Path, batch: int, accumulation: int, size: int
    ) -> None:
        class Follows(Reader):
            def __init__(self) -> None:
                super().__init__()
                self.teacher = deepcopy(self.layers).requires_grad_(False)

            def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
                with torch.no_grad():
                    for mean, one in zip(self.teacher.parameters(), self.layers.parameters(), strict=True):
                        mean.lerp_(one, 0.1)
                    taught = self.teacher(self.words(batch["input_ids"]))
                return super().loss(batch) + functional.mse_loss(self.scores(batch["input_ids"]), taught)

        with our_warnings() as texts:
            plain, tuned, _, _ = both(tmp_path, Follows, batch, accumulation, size, free=True)
        assert any("the gradients would not be the same" in text for text in texts)
        assert all(map(torch.equal, plain.gradients[-1], tuned.gradients[-1]))

    def test_samples_that_are_counted_stay_as_many(self, tmp_path: Path) -> None:
        model = Keeps()
        trained(tmp_path, model, MicroBatchTuner(size=2), rows=32, batch=8)
        assert model.outputs == [8.0] * 2 + [2.0] * 8
        assert model.seen == {"samples": 32}

    @pytest.mark.parametrize("error", [AssertionError, ZeroDivisionError])
    def test_whatever_a_step_raises_for_other_batches_ends_no_training(
        self, tmp_path: Path, error: type[Exception]
    ) -> None:
        class Particular(Reader):
            def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
                if len(batch["labels"]) != 8:
                    raise error("batches of 8 only")
                return super().training_step(batch, batch_idx)

        model = Particular()
        with our_warnings() as texts:
            trained(tmp_path, model, MicroBatchTuner(size=2), rows=32, batch=8)
        assert any("could not be run both ways: batches of 8 only" in text for text in texts)
        assert model.sizes[-3:] == [8] * 3

    def test_an_optimizer_that_steps_inside_of_backward_is_left_alone(self, tmp_path: Path) -> None:
        class Inside(Reader):
            steps = 0

            def step(self, parameter: torch.Tensor) -> None:
                self.steps += 1
                parameter.grad = None

        model = Inside()
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(model.step)
        with our_warnings() as texts:
            trained(tmp_path, model, MicroBatchTuner(size=2), rows=32, batch=8)
        assert any("as soon as its gradient is there" in text for text in texts)
        assert model.steps == 4 * len(list(model.parameters()))

    @pytest.mark.parametrize("norm", [False, True])
    def test_no_allowance_is_one_for_gradients_of_another_length(self, tmp_path: Path, norm: bool) -> None:
        """A sum is no mean: cut into four, its gradient would be a quarter of what it was."""

        class Sum(Reader):
            def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
                return super().loss(batch) * len(batch["labels"])

        model = Sum(0.01, *([OfSentences()] if norm else []))
        tuner = MicroBatchTuner(size=2, allow_batch_statistics=True)
        with our_warnings() as texts:
            trained(tmp_path, model, tuner, rows=32, batch=8)
        assert tuner.found is not None
        assert tuner.found.chosen is None
        assert any("being 0.25 times as long" in text for text in texts)
        assert model.sizes[-4:] == [8] * 4
