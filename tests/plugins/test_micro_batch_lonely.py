"""Lightning fits of two ranks of which one finds something alone: neither must wait for the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import outcomes
import pytest
import torch
from micro_batching import EvenAtFirst, Gradients, OfTokens, apart, trained
from outcomes import our_warnings
from torch.utils.data import DataLoader, DistributedSampler

from energy_plugins.lightning import MicroBatchTuner
from energy_plugins.testing.ranks import in_ranks

one_thread = outcomes.one_thread
pytestmark = pytest.mark.usefixtures("one_thread")
STEPS, EVEN = 30, 10


class Logging(OfTokens):
    """Which has the mean loss of all ranks logged for each batch."""

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss, sync_dist=True)
        return loss


class OfAllTokens(OfTokens):
    """Whose loss is divided by the labels on all ranks."""

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
        self.sizes.append(len(batch["labels"]))
        labels = (batch["labels"] >= 0).sum().double()
        whole = labels.clone()
        torch.distributed.all_reduce(whole)
        return self.loss(batch) * labels / whole * 2


def fit(folder: Path, model: OfTokens, tuner: MicroBatchTuner | None, rank: int) -> list[list[torch.Tensor]]:
    """Train on sentences of which those of the second rank have fewer labels later on."""
    data, gradients = EvenAtFirst(2 * STEPS * 8, 2 * EVEN * 8, every=2), Gradients()
    sampler: DistributedSampler[Any] = DistributedSampler(data, 2, rank, shuffle=False)
    trained(
        folder, model, *([tuner] if tuner else []), gradients, rows=0, batch=2, strategy="ddp", devices=2,
        use_distributed_sampler=False, wrap=lambda _: DataLoader(data, 2, sampler=sampler),
        precision="64-true", accumulate_grad_batches=4,
    )  # fmt: skip
    return gradients.gradients


@pytest.mark.parametrize("kind", [Logging, OfAllTokens])
def test_what_the_model_says_to_other_ranks_is_heard_by_them(tmp_path: Path, kind: type[OfTokens]) -> None:
    def train(rank: int) -> None:
        torch.set_num_threads(1)
        tuner, model = MicroBatchTuner(size=8), kind()
        with our_warnings() as texts:
            tuned = fit(tmp_path, model, tuner, rank)
        plain = fit(tmp_path, kind(), None, rank)
        assert len(plain) == len(tuned) == STEPS
        assert max(map(apart, plain, tuned)) <= 1e-9
        assert tuner.found is not None
        if kind is OfAllTokens:
            assert "tell each other something" in tuner.found.why
            assert set(model.sizes[-STEPS * 4 :]) == {2}
        elif rank == 1:
            assert "step 11 would have differed" in tuner.found.why
            assert any(tuner.found.why in text for text in texts)  # nobody else knows
            assert set(model.sizes[-16:]) == {2}
        else:  # it has not heard of it yet, and its own gradients are right
            assert tuner.found.chosen == 8
            assert set(model.sizes[-4:]) == {8}

    assert in_ranks(2, train, patience_s=40.0) == [0, 0]
