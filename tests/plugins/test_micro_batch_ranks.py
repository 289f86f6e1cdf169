"""Two real ranks that search for a micro-batch: they choose the same one, whatever each of them measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from micro_batching import Reader, trained
from outcomes import load

from energy_plugins.lightning import EnergyMonitor, MicroBatchTuner
from energy_plugins.measure.micro_batch_part import MicroBatchPart
from energy_plugins.measure.report import Report
from energy_plugins.testing import simulated_gpus
from energy_plugins.testing.ranks import in_ranks
from energy_plugins.training.limits.timing import Timing

MOST_STEPS = 900
QUICK = Timing(first_s=0.2, settle_s=0.05, watch_s=1.0, least_search_s=1.0, shorter=10.0)


class UntilChosen(Callback):
    """Ends a training some steps after the search, which is over after the same step on all ranks."""

    def __init__(self, tuner: MicroBatchTuner) -> None:
        self._tuner = tuner
        self._left = 20

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        found = self._tuner.found
        self._left -= found is not None and found.chosen is not None
        trainer.should_stop = self._left <= 0


@pytest.mark.slow
@pytest.mark.parametrize("fails_from", [None, 0, 5])
def test_ranks_choose_alike(tmp_path: Path, fails_from: int | None) -> None:
    """In real time, as long as it takes: how noisy steps are is up to the machine."""
    with simulated_gpus(count=2) as simulation:

        def train(rank: int) -> None:
            torch.set_num_threads(1)
            gpu = simulation.gpus[rank]

            class Working(Reader):
                def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
                    size = len(batch["input_ids"])
                    # Later, when the optimizer has its state: then it is in the pass that reduces gradients.
                    if fails_from is not None and self.global_step >= fails_from and rank == 1 and size > 4:
                        raise torch.OutOfMemoryError("CUDA out of memory")
                    gpu.launch(ops=1e12 * (1 + 0.1 * rank) * (4 + size), wait=True)
                    return super().training_step(batch, batch_idx)

            monitor = EnergyMonitor(table=False, log=False, progress_bar=False)
            monitor._monitor.timing = QUICK
            tuner, model = MicroBatchTuner(search_share=0.5), Working()
            settings: dict[str, Any] = {"accumulate_grad_batches": 4, "strategy": "ddp", "devices": 2}
            callbacks = (monitor, tuner, UntilChosen(tuner))
            trained(tmp_path, model, *callbacks, rows=2 * 8 * MOST_STEPS, batch=2, **settings)
            assert tuner.found is not None
            assert tuner.found.chosen is not None
            assert set(model.sizes[-4:]) == {tuner.found.chosen}
            assert max(model.sizes) == (8 if fails_from is None else 4)

        assert in_ranks(2, train) == [0, 0]
    first, second = part_of(load(tmp_path)), part_of(Report.load(tmp_path / "energy" / "run-1" / "rank-1"))
    assert (first.chosen, first.source, first.tried) == (second.chosen, "search", second.tried)
    if fails_from:
        assert {one.size: one.why for one in first.tried}[8] == "out of memory"
    elif fails_from == 0:
        assert "it does not fit into the memory of another rank" in " ".join(first.explanation)


def part_of(report: Report) -> MicroBatchPart:
    assert report.micro_batch is not None
    return report.micro_batch
