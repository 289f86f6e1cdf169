"""Lightning's own Tuner with `EnergyMonitor` on: what it tries is in no report of a fit, or told apart in it."""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner.tuning import Tuner
from outcomes import load, our_warnings
from test_lightning import Model, Rows, make_trainer
from torch.utils.data import DataLoader

from energy_plugins.lightning import EnergyMonitor, PowerLimitTuner
from energy_plugins.measure.report import Report
from energy_plugins.testing import Simulation

BATCHES = 6
TRIED = 20
EPOCHS = 4
STEP_S = 0.02
LIGHTNING = tuple(int(part) for part in version("lightning").split(".")[:2])


class Tuned(Model):
    """A model whose learning rate and batch size Lightning's Tuner may change."""

    def __init__(self) -> None:
        super().__init__(lambda _: time.sleep(STEP_S))
        self.lr = 1e-6

    def train_dataloader(self) -> DataLoader[torch.Tensor]:
        return DataLoader(Rows(BATCHES * self.batch_size), batch_size=self.batch_size)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def trainer_of(folder: Path, *callbacks: Any) -> tuple[Trainer, EnergyMonitor]:
    monitor = EnergyMonitor(table=False, progress_bar=False)
    return make_trainer(folder, *callbacks, monitor), monitor


def assert_is_a_fit(report: Report | None, trainer: Trainer, steps: int = BATCHES) -> None:
    """Check that a report is of one fit: its steps, each of its length, and nothing that was tried before."""
    assert report is not None
    assert report.steps.rows == report.work.steps == steps
    lengths_s = report.steps["end_s"] - report.steps["start_s"]
    assert float(lengths_s.min()) >= STEP_S
    assert float(lengths_s.sum()) <= report.duration_s
    assert trainer.callback_metrics["energy/total_j"] == pytest.approx(report.total_j)
    assert report.warnings == ()


@pytest.mark.parametrize("method", ["lr_find", "scale_batch_size"])
def test_what_the_tuner_tries_is_in_no_report(simulation: Simulation, tmp_path: Path, method: str) -> None:
    trainer, monitor = trainer_of(tmp_path)
    model, tuner = Tuned(), Tuner(trainer)
    with our_warnings() as texts:
        if method == "lr_find":
            found = tuner.lr_find(model, num_training=TRIED, early_stop_threshold=None)
            assert found is not None
            assert len(found.results["loss"]) == BATCHES  # the trainer has one epoch
        else:
            size = tuner.scale_batch_size(model, mode="power", steps_per_trial=2, max_trials=3)
            assert size in {8, 16}  # the last that was tried, or with Lightning 2.5 the next
        assert monitor.report is None
        assert not (tmp_path / "energy").exists()
        assert monitor in vars(trainer)["callbacks"]
        trainer.fit(model)
    assert texts == []
    assert_is_a_fit(load(tmp_path), trainer)


def test_one_after_the_other_and_a_limit_that_is_for_the_fit_alone(simulation: Simulation, tmp_path: Path) -> None:
    trainer, monitor = trainer_of(tmp_path, PowerLimitTuner(fixed=500))
    model, tuner = Tuned(), Tuner(trainer)
    tuner.scale_batch_size(model, mode="binsearch", steps_per_trial=1, max_trials=2, init_val=4)
    tuner.lr_find(model, num_training=TRIED, early_stop_threshold=None)
    assert monitor.report is None
    trainer.fit(model)
    assert_is_a_fit(monitor.report, trainer)
    assert monitor.report is not None
    assert monitor.report.power_limit is not None
    assert (monitor.report.power_limit.chosen, monitor.report.power_limit.source) == (500, "fixed")


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("kind", [LearningRateFinder, BatchSizeFinder])
def test_a_finder_among_the_callbacks_is_in_no_report_either(
    simulation: Simulation, tmp_path: Path, kind: type[LearningRateFinder | BatchSizeFinder], place: str
) -> None:
    """Lightning calls it first, wherever it stands, and the fit begins for the others when it is done."""
    if kind is LearningRateFinder and LIGHTNING < (2, 6):
        pytest.skip("Lightning before 2.6 takes the finder's steps for steps of the fit, which then makes fewer")
    finder = kind(**({"max_trials": 3} if kind is BatchSizeFinder else {"early_stop_threshold": None}))
    monitor = EnergyMonitor(table=False, progress_bar=False)
    trainer = make_trainer(tmp_path, *([finder, monitor] if place == "before" else [monitor, finder]))
    model = Tuned()
    trainer.fit(model)
    assert model.steps > BATCHES
    assert_is_a_fit(monitor.report, trainer)


class Midway(LearningRateFinder):
    """A finder that is asked again before the second epoch, as Lightning's documentation has it for fine-tuning."""

    def on_fit_start(self, *_: Any) -> None:
        """Do not search yet."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            self.lr_find(trainer, pl_module)


def test_a_finder_in_the_middle_of_a_fit_is_outside_of_its_steps(simulation: Simulation, tmp_path: Path) -> None:
    monitor = EnergyMonitor(table=False, progress_bar=False)
    trainer = make_trainer(
        tmp_path, monitor, Midway(num_training_steps=TRIED, early_stop_threshold=None), max_epochs=EPOCHS
    )
    model = Tuned()
    trainer.fit(model)
    report = monitor.report
    assert_is_a_fit(report, trainer, EPOCHS * BATCHES)
    assert report is not None
    lengths_s = report.steps["end_s"] - report.steps["start_s"]
    tried_s = (model.steps - EPOCHS * BATCHES) * STEP_S
    assert tried_s >= BATCHES * STEP_S
    assert report.duration_s - float(lengths_s.sum()) > tried_s
    assert float(lengths_s.max()) < tried_s


def test_a_batch_that_does_not_fit_ends_neither_the_search_nor_the_monitor(
    simulation: Simulation, tmp_path: Path
) -> None:
    class Small(Tuned):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            if len(batch) > 16:
                raise RuntimeError("CUDA out of memory.")
            return super().training_step(batch, batch_idx)

    trainer, monitor = trainer_of(tmp_path)
    model = Small()
    assert Tuner(trainer).scale_batch_size(model, mode="power", steps_per_trial=2, max_trials=5) == 16
    trainer.fit(model)
    assert_is_a_fit(monitor.report, trainer)
