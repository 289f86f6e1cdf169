"""Lightning fits of several ranks in other micro-batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import outcomes
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from micro_batching import (
    STEPS,
    TUNED,
    Gradients,
    OfTokens,
    Reader,
    apart,
    trained,
)
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from energy_plugins.lightning import MicroBatchTuner
from energy_plugins.testing.ranks import in_ranks

one_thread = outcomes.one_thread
pytestmark = pytest.mark.usefixtures("one_thread")


class Reductions(Callback):
    """Counts how often a bucket of gradients is reduced over ranks."""

    def __init__(self) -> None:
        self.count = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def hook(state, bucket):  # type: ignore[no-untyped-def] # torch reads annotations, and wants no text  # noqa: ANN001, ANN202
            self.count += 1
            assert torch.distributed.group.WORLD is not None
            return allreduce_hook(torch.distributed.group.WORLD, bucket)

        trainer.strategy.model.register_comm_hook(None, hook)  # type: ignore[union-attr, operator]


@pytest.mark.parametrize(("batch", "accumulation", "size"), [(12, 1, 4), (12, 2, 6), (4, 4, 8), (2, 6, 12)])
def test_two_ranks_have_the_same_gradients_with_as_many_reductions(
    tmp_path: Path, batch: int, accumulation: int, size: int
) -> None:
    def train(rank: int) -> None:
        torch.set_num_threads(1)
        short = (batch if accumulation > 1 else 0) + 1  # the last window is cut short, and so is its last batch
        rows = 2 * (STEPS * batch * accumulation - short)
        settings: dict[str, Any] = {"strategy": "ddp", "devices": 2, "rows": rows, "batch": batch}
        settings["accumulate_grad_batches"] = accumulation
        plain, counts = Gradients(), [Reductions(), Reductions()]
        trained(tmp_path, Reader(), plain, counts[0], **settings)
        tuned, tuner, model = Gradients(plain.parameters), MicroBatchTuner(size=size), Reader()
        trained(tmp_path, model, tuner, tuned, counts[1], **settings)
        assert tuner.found is not None
        assert tuner.found.chosen == size
        assert model.sizes.count(size) >= TUNED * batch * accumulation // size
        assert len(plain.gradients) == STEPS
        for one, other in zip(plain.gradients, tuned.gradients, strict=True):
            assert apart(one, other) <= 1e-6
        assert counts[0].count == counts[1].count == STEPS
        free = Gradients()
        trained(tmp_path, Reader(), free, MicroBatchTuner(size=size), precision="64-true", **settings)
        plain = Gradients()
        trained(tmp_path, Reader(), plain, precision="64-true", **settings)
        assert len(plain.gradients) == len(free.gradients) == STEPS
        assert max(map(apart, plain.gradients, free.gradients)) <= 1e-9

    assert in_ranks(2, train) == [0, 0]


def test_what_one_rank_cannot_do_none_does(tmp_path: Path) -> None:
    class Uneven(Reader):
        """Of which one rank's loss is a mean over labels."""

        def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            other = OfTokens.loss if self.global_rank == 1 else Reader.loss
            return other(self, batch)  # type: ignore[arg-type]

    def train(rank: int) -> None:
        torch.set_num_threads(1)
        tuner, model = MicroBatchTuner(size=4), Uneven()
        trained(tmp_path, model, tuner, rows=96, batch=12, strategy="ddp", devices=2)
        assert tuner.found is not None
        assert tuner.found.chosen is None
        assert "of their norm" in tuner.found.why
        assert ("another rank says no" in tuner.found.why) == (rank == 0)
        assert set(model.sizes[-2:]) == {12}

    assert in_ranks(2, train) == [0, 0]
