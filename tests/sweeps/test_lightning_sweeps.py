"""Sweeps where Lightning is more than one Trainer: LightningCLI, its Tuner, and two ranks whose first has the trial."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.tuner.tuning import Tuner
from optuna.pruners import NopPruner, ThresholdPruner
from optuna.trial import TrialState
from sweeping import Simulated, sqlite
from test_pruning import WATTS, Model, Rows
from torch.utils.data import DataLoader

from energy_plugins.lightning import EnergyMonitor
from energy_plugins.optuna import EnergyPruningCallback, charged
from energy_plugins.optuna.attributes import PRUNED, TOTAL_J
from energy_plugins.testing import Constant
from energy_plugins.testing.ranks import in_ranks

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


@pytest.fixture(autouse=True)
def gpus(simulated: Simulated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENERGY_REPORT_TABLE", "0")
    simulated([Constant(WATTS), Constant(WATTS)])


class OfCli(LightningModule):
    """What the command line makes: a rate, and data of its own."""

    def __init__(self, rate: float = 1e-3) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.rate = rate

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.layer(batch).square().mean()  # type: ignore[no-any-return]

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.rate)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6)

    def train_dataloader(self) -> DataLoader[torch.Tensor]:
        return DataLoader(Rows())

    val_dataloader = train_dataloader


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*less than the logging interval")
def test_what_a_tuner_tries_first_is_no_report_of_the_trial_and_charged_if_asked(tmp_path: Path) -> None:
    class Tuned(OfCli):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            time.sleep(0.05)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
            self.log("val_loss", float(self.current_epoch))

    study = optuna.create_study(pruner=ThresholdPruner(upper=1.5))

    def objective(trial: optuna.Trial) -> float:
        prune = EnergyPruningCallback(trial, "val_loss")
        trainer = Trainer(max_epochs=5, default_root_dir=tmp_path, callbacks=[prune], **QUIET)
        with charged(trial) if trial.number else nullcontext():
            model = Tuned()
            Tuner(trainer).lr_find(model, num_training=8, attr_name="rate")
            assert not study.trials[trial.number].intermediate_values
            trainer.fit(model)
        return 0.0

    study.optimize(objective, n_trials=2)
    alone, both = study.trials
    for trial in study.trials:
        assert trial.state == TrialState.PRUNED
        assert trial.intermediate_values == {0: 0.0, 1: 1.0, 2: 2.0}
    assert both.user_attrs[TOTAL_J] > alone.user_attrs[TOTAL_J] + 0.3 * WATTS


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
def test_a_command_line_has_the_monitor_and_each_trial_its_callback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py"])
    study = optuna.create_study(pruner=ThresholdPruner(upper=0.5), sampler=optuna.samplers.RandomSampler(0))
    study.enqueue_trial({"rate": 0.1})
    study.enqueue_trial({"rate": 0.9})

    def objective(trial: optuna.Trial) -> float:
        prune = EnergyPruningCallback(trial, "val_loss")
        cli = LightningCLI(
            OfCli,
            run=False,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults={**QUIET, "callbacks": [prune]},
            args=[
                f"--model.rate={trial.suggest_float('rate', 0.0, 1.0)}",
                "--trainer.callbacks+=energy_plugins.lightning.EnergyMonitor",
                f"--trainer.callbacks.folder={tmp_path}",
                "--trainer.callbacks.name=cli",
                "--trainer.max_epochs=3",
                f"--trainer.default_root_dir={tmp_path}",
            ],
        )
        callbacks = vars(cli.trainer)["callbacks"]
        cli.trainer.fit(cli.model)
        # Where the package is installed, settings of the environment bring another, which stands back.
        assert sum(type(callback) is EnergyMonitor for callback in callbacks) == 1
        return float(cli.trainer.callback_metrics["val_loss"])

    study.optimize(objective, n_trials=2)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert study.trials[0].intermediate_values == pytest.approx({0: 0.1, 1: 0.1, 2: 0.1})
    for trial in study.trials:
        assert trial.user_attrs[TOTAL_J] == pytest.approx(2 * WATTS * trial.user_attrs["energy/duration_s"], rel=0.15)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cli-1", "cli-2"]


class Spoiled(Model):
    """A model in whose training something happens to the study's storage."""

    def __init__(self, losses: list[float], step_s: float, at_epoch: Callable[[int], None]) -> None:
        super().__init__(losses, step_s)
        self.at_epoch = at_epoch

    def on_validation_epoch_start(self) -> None:
        if self.global_rank == 0:
            self.at_epoch(self.current_epoch)


def nothing(epoch: int) -> None:
    pass


def two_ranks(
    folder: Path,
    pruner: optuna.pruners.BasePruner,
    losses: list[float],
    *,
    epochs: int = 6,
    step_s: float = 0.05,
    budget_j: float | None = None,
    at_epoch: Callable[[int], None] = nothing,
) -> tuple[optuna.trial.FrozenTrial, list[int]]:
    """Train one trial with two ranks, and return it and how many epochs each rank made."""
    optuna.create_study(storage=sqlite(folder), study_name="ranks")

    def train(rank: int) -> None:
        trial = study = None
        if rank == 0:
            study = optuna.load_study(storage=sqlite(folder), study_name="ranks", pruner=pruner)
            trial = study.ask()
        callback = EnergyPruningCallback(trial, "val_loss", budget_j)
        trainer = Trainer(
            default_root_dir=folder, strategy="ddp", devices=2, max_epochs=epochs, callbacks=[callback], **QUIET
        )
        data = DataLoader(Rows(), batch_size=1)
        trainer.fit(Spoiled(losses, step_s, at_epoch), data, data)
        (folder / f"epochs-{rank}").write_text(str(trainer.current_epoch))
        try:
            callback.check_pruned()
        except optuna.TrialPruned:
            assert study is not None
            assert trial is not None
            study.tell(trial, state=TrialState.PRUNED)
        else:
            if study is not None and trial is not None:
                study.tell(trial, float(trainer.callback_metrics["val_loss"]))

    assert in_ranks(2, train) == [0, 0]
    (trial,) = optuna.load_study(storage=sqlite(folder), study_name="ranks").trials
    assert trial.user_attrs[TOTAL_J] == pytest.approx(2 * WATTS * trial.user_attrs["energy/duration_s"], rel=0.2)
    return trial, [int((folder / f"epochs-{rank}").read_text()) for rank in range(2)]


def test_ranks_end_together_where_the_metric_prunes(tmp_path: Path) -> None:
    trial, epochs = two_ranks(tmp_path, ThresholdPruner(upper=5.0), [3.0, 2.0, 9.0, 1.0])
    assert trial.state == TrialState.PRUNED
    assert trial.intermediate_values == {0: 3.0, 1: 2.0, 2: 9.0}
    assert epochs == [3, 3]


def test_ranks_end_together_where_the_energy_does(tmp_path: Path) -> None:
    trial, epochs = two_ranks(tmp_path, NopPruner(), [1.0], epochs=100, step_s=0.2, budget_j=600.0)
    assert trial.state == TrialState.PRUNED
    assert trial.user_attrs[PRUNED] == 1.0
    assert trial.user_attrs[TOTAL_J] > 600.0
    assert epochs[0] == epochs[1] < 20


def test_a_trial_that_nobody_prunes_has_its_value(tmp_path: Path) -> None:
    trial, epochs = two_ranks(tmp_path, NopPruner(), [0.5], epochs=2)
    assert (trial.state, trial.value, epochs) == (TrialState.COMPLETE, 0.5, [2, 2])


def test_ranks_go_on_without_the_storage_and_are_pruned_when_it_is_back(tmp_path: Path) -> None:
    kept: list[bytes] = []

    def at_epoch(epoch: int) -> None:
        path = tmp_path / "study.db"
        if epoch == 1:
            kept.append(path.read_bytes())
            path.write_bytes(b"no database" * 1000)
        if epoch == 3:
            path.write_bytes(kept[0])

    trial, epochs = two_ranks(tmp_path, ThresholdPruner(upper=5.0), [3.0, 9.0, 9.0, 9.0, 9.0], at_epoch=at_epoch)
    assert trial.state == TrialState.PRUNED
    assert trial.intermediate_values == {0: 3.0, 3: 9.0}
    assert epochs == [4, 4]
