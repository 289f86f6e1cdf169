"""What a report of Lightning's says of the loaders: how many workers they have, and how many would keep up."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from outcomes import load
from torch.utils.data import DataLoader, Dataset

from energy_plugins.lightning import EnergyMonitor
from energy_plugins.measure.report import Report
from energy_plugins.report.advice import advice
from energy_plugins.report.advice_item import Advice
from energy_plugins.testing import Simulation

WORK_S, BATCH_S = 0.04, 0.1


class Slow(Dataset[torch.Tensor]):
    """Each row, which is a batch here, takes its time to be read."""

    def __init__(self, rows: int, takes_s: float) -> None:
        self.rows, self.takes_s = rows, takes_s

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(self.takes_s)
        return torch.ones(4)


class Model(LightningModule):
    def __init__(self, takes_s: float) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.takes_s = takes_s

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        time.sleep(self.takes_s)
        loss: torch.Tensor = self.layer(torch.ones(4)).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6)


def slow(rows: int = 3, takes_s: float = 0.0, workers: int = 0) -> DataLoader[torch.Tensor]:
    return DataLoader(Slow(rows, takes_s), num_workers=workers)


def make_trainer(folder: Path) -> Trainer:
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    monitor = EnergyMonitor(table=False)
    return Trainer(default_root_dir=folder, accelerator="cpu", max_epochs=1, callbacks=[monitor], **quiet)


def trained(folder: Path, data: Any, takes_s: float = 0.0) -> Report:
    make_trainer(folder).fit(Model(takes_s), data)
    return load(folder)


def waiting(report: Report) -> Advice | None:
    return next((item for item in advice(report) if item.topic == "data wait"), None)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")  # they sleep
def test_the_workers_advised_keep_up(simulation: Simulation, tmp_path: Path) -> None:
    before = trained(tmp_path / "before", slow(24, BATCH_S), WORK_S)
    found = waiting(before)
    assert found is not None
    assert found.share is not None
    assert found.share > 0.4
    assert found.sentence.endswith("% of this run's energy was spent waiting for data: num_workers 0 -> 3")
    after = waiting(trained(tmp_path / "after", slow(24, BATCH_S, workers=3), WORK_S))
    # What is left is the first batch, and the start of the workers.
    assert after is None or (after.share is not None and after.share < 0.5 * found.share)


@pytest.mark.parametrize(
    ("data", "workers"),
    [
        (slow(workers=1), 1),
        (CombinedLoader({"a": slow(), "b": slow(workers=1)}, "min_size"), [0, 1]),
        ([slow(), slow()], [0, 0]),
        (({"a": slow()}, [torch.ones(4)]), [0, None]),
        (range(3), None),
    ],
    ids=["one", "combined", "several", "mixed", "none"],
)
def test_the_workers_are_those_of_the_loaders(data: Any, workers: Any, simulation: Simulation, tmp_path: Path) -> None:
    assert trained(tmp_path, data).config["num_workers"] == workers


def test_an_evaluation_says_nothing_of_loaders(simulation: Simulation, tmp_path: Path) -> None:
    class Evaluated(Model):
        def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
            pass

    make_trainer(tmp_path).validate(Evaluated(0.0), slow(), verbose=False)
    assert "num_workers" not in load(tmp_path).config
