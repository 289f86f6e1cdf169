"""What plugins tell the ledger that only they know: framework, model, project, and that a training failed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import test_lightning
import transformers_training
from accelerate_training import Training
from accelerate_training import loader as accelerate_loader

from energy_plugins.accelerate import attach
from energy_plugins.lightning import EnergyMonitor
from energy_plugins.measure.ledger_entry import LedgerEntry, Status
from energy_plugins.measure.spool import spool_folder
from energy_plugins.testing import Simulation
from energy_plugins.transformers import EnergyCallback

Step = Callable[[int], None]


class PlannedError(Exception):
    """A training's own."""


def lightning(folder: Path, step: Step) -> None:
    model = test_lightning.Model(step)
    test_lightning.make_trainer(folder, EnergyMonitor(table=False, progress_bar=False)).fit(model)


def transformers(folder: Path, step: Step) -> None:
    model = transformers_training.Model(step)
    transformers_training.make_trainer(folder, EnergyCallback(table=False), model=model).train()


def accelerate(folder: Path, step: Step) -> None:
    from accelerate_training import Model

    training = Training(folder, accelerate_loader(12), Model(step))
    with attach(training.accelerator, table=False):
        training.epoch()


def fail(step: int) -> None:
    raise PlannedError


def entries() -> list[LedgerEntry]:
    return [LedgerEntry.decode(path.read_bytes(), str(path)) for path in spool_folder().glob("*.json")]


TRAININGS = pytest.mark.parametrize("train", [lightning, transformers, accelerate])
Train = Callable[[Path, Step], None]


@TRAININGS
def test_a_training_says_what_it_is(
    train: Train, simulation: Simulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "energy.yaml").write_text("report: {project: robots}\n")
    monkeypatch.setenv("ENERGY_CONFIG", str(tmp_path / "energy.yaml"))
    train(tmp_path, lambda step: None)
    (entry,) = entries()
    assert (entry.framework, entry.model, entry.project) == (train.__name__, "Model", "robots")
    assert (entry.status, entry.steps) == (Status.FINISHED, 3)


@TRAININGS
def test_a_training_that_fails_says_so(train: Train, simulation: Simulation, tmp_path: Path) -> None:
    with pytest.raises(PlannedError):
        train(tmp_path, fail)
    (entry,) = entries()
    assert entry.status is Status.FAILED


@TRAININGS
def test_one_key_keeps_trainings_out(
    train: Train, simulation: Simulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "energy.yaml").write_text("report: {ledger: false}\n")
    monkeypatch.setenv("ENERGY_CONFIG", str(tmp_path / "energy.yaml"))
    train(tmp_path, lambda step: None)
    assert entries() == []
    assert list(tmp_path.rglob("report.json")) != []
