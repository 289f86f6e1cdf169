"""Lightning's callback and that of transformers prune by metric and by energy, and every trial is charged."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, cast

import optuna
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from optuna.pruners import NopPruner, ThresholdPruner
from sweeping import Simulated, sqlite
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer as HfTrainer
from transformers import TrainingArguments

from energy_plugins.errors import ConfigError
from energy_plugins.lightning import EnergyMonitor
from energy_plugins.optuna import (
    EnergyBudgetPruner,
    EnergyPruningCallback,
    StudyEnergyBudget,
    energy_objective,
    energy_to_target,
    study_energy_j,
    time_to_target,
)
from energy_plugins.optuna.attributes import PRUNED, STUDY_SPENT, TOTAL_J, TRIAL
from energy_plugins.optuna.transformers import EnergyPruningCallback as ForTransformers
from energy_plugins.testing import Constant, Simulation
from energy_plugins.units import j_to_kwh

WATTS = 300.0


@pytest.fixture(autouse=True)
def gpu(simulated: Simulated, monkeypatch: pytest.MonkeyPatch) -> Simulation:
    monkeypatch.setenv("ENERGY_REPORT_TABLE", "0")
    return simulated(Constant(WATTS))


class Rows(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.ones(2)


class Model(LightningModule):
    """A linear layer whose validation says what it is told to."""

    def __init__(self, losses: list[float], step_s: float = 0.0) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.losses, self.step_s = losses, step_s

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        time.sleep(self.step_s)
        return self.layer(batch).square().mean()  # type: ignore[no-any-return]

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.losses[min(self.current_epoch, len(self.losses) - 1)])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6)


class Unvalidated(Model):
    validation_step = None  # type: ignore[assignment]

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.log("loss", self.losses[min(self.current_epoch, len(self.losses) - 1)], on_epoch=True, on_step=False)
        return super().training_step(batch, batch_idx)


def fit(folder: Path, model: Model, callback: EnergyPruningCallback, epochs: int, *others: Callback) -> Trainer:
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
        callbacks=[callback, *others],
    )
    data = DataLoader(Rows(), batch_size=1)
    trainer.fit(model, data, None if isinstance(model, Unvalidated) else data)
    return trainer


def one_trial(study: optuna.Study, objective: Any) -> optuna.trial.FrozenTrial:
    study.optimize(objective, n_trials=1)
    return study.trials[-1]


@pytest.mark.parametrize("kind", [Model, Unvalidated])
def test_the_metric_prunes_at_the_epoch_where_it_should(tmp_path: Path, kind: type[Model]) -> None:
    study = optuna.create_study(pruner=ThresholdPruner(upper=5.0))
    name = "val_loss" if kind is Model else "loss"

    def objective(trial: optuna.Trial) -> float:
        fit(tmp_path, kind([3.0, 2.0, 9.0, 1.0]), EnergyPruningCallback(trial, name, direction="minimize"), 4)
        return 0.0

    trial = one_trial(study, objective)
    assert trial.state == optuna.trial.TrialState.PRUNED
    assert trial.intermediate_values == {0: 3.0, 1: 2.0, 2: 9.0}
    assert trial.user_attrs[TOTAL_J] == pytest.approx(WATTS * trial.user_attrs["energy/duration_s"], rel=0.1)
    assert PRUNED not in trial.user_attrs


def test_the_report_of_a_pruned_trial_has_no_fault(tmp_path: Path) -> None:
    """Its span of the validation ends, too, though the callback that ends the fit comes before the monitor."""
    monitor = EnergyMonitor(str(tmp_path))
    trial = optuna.create_study(pruner=ThresholdPruner(upper=5.0)).ask()
    with pytest.raises(optuna.TrialPruned):
        fit(tmp_path, Model([1.0, 9.0], step_s=0.05), EnergyPruningCallback(trial, "val_loss"), 4, monitor)
    assert monitor.report is not None
    assert not monitor.report.warnings


def test_a_fit_that_has_drawn_its_budget_is_pruned_within_the_epoch(tmp_path: Path) -> None:
    study = optuna.create_study(pruner=NopPruner())

    def objective(trial: optuna.Trial) -> float:
        fit(tmp_path, Model([1.0], step_s=0.4), EnergyPruningCallback(trial, "val_loss", budget_j=300.0), 30)
        return 0.0

    trial = one_trial(study, objective)
    assert trial.state == optuna.trial.TrialState.PRUNED
    assert trial.user_attrs[PRUNED] == 1.0
    assert 300 < trial.user_attrs[TOTAL_J] < 1200


@pytest.mark.slow
def test_a_fit_that_will_draw_more_than_its_budget_is_pruned_long_before(tmp_path: Path) -> None:
    study = optuna.create_study(pruner=NopPruner())

    def objective(trial: optuna.Trial) -> float:
        fit(tmp_path, Model([1.0], step_s=0.25), EnergyPruningCallback(trial, "val_loss", budget_j=20e3), 100)
        return 0.0

    trial = one_trial(study, objective)
    assert trial.state == optuna.trial.TrialState.PRUNED
    assert trial.user_attrs["energy/forecast_j"] > 20e3
    assert trial.user_attrs[TOTAL_J] < 6e3


def test_energy_and_time_to_a_target_are_those_of_its_first_time(tmp_path: Path) -> None:
    study = optuna.create_study(pruner=NopPruner())

    def objective(trial: optuna.Trial) -> float:
        callback = EnergyPruningCallback(trial, "val_loss", target=0.5)
        fit(tmp_path, Model([math.nan, 0.6, 0.5, 0.7, 0.1], step_s=0.05), callback, 5)
        assert 0.4 < time_to_target(trial) < trial.user_attrs["energy/duration_s"]
        return energy_to_target(trial)

    trial = one_trial(study, objective)
    assert trial.value == trial.user_attrs["energy/to_target_j"]
    assert 0.4 * WATTS < study.best_value < trial.user_attrs[TOTAL_J]
    assert trial.user_attrs["energy/metric_nan"] == 1.0


def test_a_target_that_is_never_reached_prunes_the_trial(tmp_path: Path) -> None:
    def objective(trial: optuna.Trial) -> float:
        fit(tmp_path, Model([0.6]), EnergyPruningCallback(trial, "val_loss", target=0.5), 1)
        return energy_to_target(trial)

    study = optuna.create_study()
    assert one_trial(study, objective).state == optuna.trial.TrialState.PRUNED
    assert study_energy_j(study) > 0


@pytest.mark.filterwarnings("ignore::FutureWarning")  # Lightning's and torch's own, which pytest.warns brings up again
def test_a_metric_that_never_arrives_is_said_and_marked(tmp_path: Path) -> None:
    def objective(trial: optuna.Trial) -> float:
        fit(tmp_path, Model([0.6]), EnergyPruningCallback(trial, "val_acc"), 2)
        return 0.0

    with pytest.warns(RuntimeWarning, match="no metric 'val_acc'.*val_loss"):
        trial = one_trial(optuna.create_study(), objective)
    assert trial.user_attrs["energy/metric_missing"] == 2.0
    assert trial.state == optuna.trial.TrialState.COMPLETE


def test_inside_energy_objective_the_joules_count_once_and_energy_prunes(tmp_path: Path) -> None:
    study = optuna.create_study(directions=["minimize", "minimize"])

    def train(trial: optuna.Trial) -> float:
        fit(tmp_path, Model([1.0], step_s=0.4), EnergyPruningCallback(trial, budget_j=300.0), 30)
        return 0.0

    trial = one_trial(study, lambda trial: energy_objective(trial, train))
    assert trial.state == optuna.trial.TrialState.PRUNED
    assert trial.user_attrs[TOTAL_J] == pytest.approx(WATTS * trial.user_attrs["energy/duration_s"], rel=0.1)


def test_a_budget_of_the_study_ends_a_trial_that_runs(tmp_path: Path) -> None:
    study = optuna.create_study(pruner=NopPruner())
    budget = StudyEnergyBudget(j_to_kwh(400.0)).begin(study)

    def objective(trial: optuna.Trial) -> float:
        fit(tmp_path, Model([1.0], step_s=0.4), EnergyPruningCallback(trial, "val_loss"), 30)
        return 0.0

    study.optimize(objective, n_trials=5, callbacks=[budget])
    assert [trial.state.name for trial in study.trials] == ["PRUNED"]
    assert 400 <= study_energy_j(study) < 1200


def test_a_worker_that_has_no_budget_of_its_own_keeps_that_of_the_study(tmp_path: Path) -> None:
    """Another process gave it, and its trials have spent it."""
    study = optuna.create_study(storage=sqlite(tmp_path), study_name="one", pruner=NopPruner())
    StudyEnergyBudget(j_to_kwh(100.0)).begin(study)
    spent = study.ask()
    for name, value in {TRIAL: 0.0, TOTAL_J: 100.0}.items():
        spent.set_user_attr(name, value)
    study.tell(spent, 1.0)

    def objective(trial: optuna.Trial) -> float:
        fit(tmp_path, Model([1.0], step_s=0.4), EnergyPruningCallback(trial, "val_loss"), 30)
        return 0.0

    resumed = optuna.load_study(study_name="one", storage=sqlite(tmp_path), pruner=NopPruner())
    resumed.optimize(objective, n_trials=5)
    assert [trial.state.name for trial in resumed.trials] == ["COMPLETE", "PRUNED"]


def test_no_trial_begins_after_one_that_ended_for_the_budget_of_the_study() -> None:
    """What it drew in the end may be a little less than what was known when it ended."""

    def objective(trial: optuna.Trial) -> float:
        for name, value in {TRIAL: float(trial.number), TOTAL_J: 99.0, STUDY_SPENT: 1.0}.items():
            trial.set_user_attr(name, value)
        raise optuna.TrialPruned

    study = optuna.create_study(pruner=NopPruner())
    study.optimize(objective, n_trials=5, callbacks=[StudyEnergyBudget(j_to_kwh(100.0))])
    assert len(study.trials) == 1


@pytest.mark.parametrize("budget", [0, -5.0, math.nan, math.inf, "3"])
def test_a_budget_that_is_none_is_refused(budget: Any) -> None:
    trial = optuna.create_study().ask()
    for make in (
        lambda: EnergyPruningCallback(trial, "val_loss", budget),
        lambda: ForTransformers(trial, "eval_loss", budget),
        lambda: EnergyBudgetPruner(budget_j=budget),
    ):
        with pytest.raises(ConfigError, match="budget_j is"):
            make()


def test_a_study_of_another_kind_is_refused() -> None:
    both = optuna.create_study(directions=["minimize", "minimize"]).ask()
    with pytest.raises(ConfigError, match="monitor=None"):
        EnergyPruningCallback(both, "val_loss")
    with pytest.raises(ConfigError, match="the study is to minimize"):
        EnergyPruningCallback(optuna.create_study().ask(), "val_acc", direction="maximize")
    with pytest.raises(ConfigError, match="as the study was made"):
        EnergyPruningCallback(None, "val_acc", direction="up")
    with pytest.raises(ConfigError, match="target is nan"):
        EnergyPruningCallback(None, "val_acc", target=math.nan)


@pytest.mark.parametrize(
    ("attributes", "pruned"),
    [
        ({}, False),
        ({TOTAL_J: 50.0}, False),
        ({TOTAL_J: 101.0}, True),
        ({TOTAL_J: 50.0, "energy/forecast_j": 101.0}, True),
        ({TOTAL_J: 50.0, "energy/forecast_j": math.nan}, False),
    ],
)
def test_the_pruner_goes_by_what_a_trial_writes(attributes: dict[str, float], pruned: bool) -> None:
    study = optuna.create_study(pruner=EnergyBudgetPruner(NopPruner(), budget_j=100.0))
    trial = study.ask()
    for key, value in attributes.items():
        trial.set_user_attr(key, value)
    assert trial.should_prune() is False  # another trial's, until this one says that they are its own
    trial.set_user_attr("energy/trial", float(trial.number))
    assert trial.should_prune() is pruned


def test_the_pruner_does_what_the_one_inside_does() -> None:
    study = optuna.create_study(pruner=EnergyBudgetPruner(ThresholdPruner(upper=1.0), budget_j=100.0))
    trial = study.ask()
    trial.report(2.0, 0)
    assert trial.should_prune()


class HfRows(Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": torch.full((2,), float(index))}


class HfModel(torch.nn.Module):
    def __init__(self, step_s: float = 0.0) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.step_s = step_s

    def forward(self, x: torch.Tensor, return_loss: bool = True) -> dict[str, torch.Tensor]:
        time.sleep(self.step_s if self.training else 0.0)
        return {"loss": self.layer(x).square().mean()}


def hf_trainer(folder: Path, callback: ForTransformers, step_s: float, **settings: Any) -> HfTrainer:
    how: dict[str, Any] = {"num_train_epochs": 3, "per_device_train_batch_size": 2, "eval_strategy": "epoch"}
    args = TrainingArguments(
        str(folder),
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        label_names=[],
        **{**how, **settings},
    )
    data = HfRows()
    return HfTrainer(
        args=args,
        model_init=cast("Any", lambda: HfModel(step_s)),
        train_dataset=data,
        eval_dataset=data,
        callbacks=[callback],
    )


def test_a_trainer_of_ones_own_study_reports_and_is_pruned(tmp_path: Path) -> None:
    study = optuna.create_study(pruner=ThresholdPruner(upper=1e-9))

    def objective(trial: optuna.Trial) -> float:
        hf_trainer(tmp_path, ForTransformers(trial, "eval_loss"), 0.05).train()
        return 0.0

    trial = one_trial(study, objective)
    assert trial.state == optuna.trial.TrialState.PRUNED
    assert list(trial.intermediate_values) == [4]
    assert trial.user_attrs[TOTAL_J] == pytest.approx(WATTS * trial.user_attrs["energy/duration_s"], rel=0.1)


def hp_space(trial: optuna.Trial) -> dict[str, float]:
    return {"learning_rate": trial.suggest_float("learning_rate", 1e-6, 1e-5, log=True)}


def test_hyperparameter_search_is_charged_and_keeps_its_objective(tmp_path: Path) -> None:
    callback = ForTransformers(monitor="eval_loss", target=1e9)
    best = hf_trainer(tmp_path, callback, 0.02).hyperparameter_search(
        hp_space,
        backend="optuna",
        n_trials=2,
        direction="minimize",
        storage=f"sqlite:///{tmp_path / 'study.db'}",
        study_name="hf",
    )
    study = optuna.load_study(study_name="hf", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert not isinstance(best, list)
    assert study.best_value == best.objective
    for trial in study.trials:
        assert trial.value == list(trial.intermediate_values.values())[-1]
        assert trial.user_attrs[TOTAL_J] == pytest.approx(WATTS * trial.user_attrs["energy/duration_s"], rel=0.1)
        assert 0 < trial.user_attrs["energy/to_target_j"] < trial.user_attrs[TOTAL_J]


def test_hyperparameter_search_prunes_by_energy_and_goes_on(tmp_path: Path) -> None:
    callback = ForTransformers(budget_j=250.0)
    trainer = hf_trainer(tmp_path, callback, 0.3, num_train_epochs=20)
    with pytest.raises(ValueError):  # noqa: PT011 - Optuna's: there is no best trial
        trainer.hyperparameter_search(
            hp_space,
            backend="optuna",
            n_trials=2,
            direction="minimize",
            storage=f"sqlite:///{tmp_path / 'study.db'}",
            study_name="hf",
        )
    study = optuna.load_study(study_name="hf", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert [trial.state.name for trial in study.trials] == ["PRUNED", "PRUNED"]
    for trial in study.trials:
        assert trial.user_attrs[PRUNED] == 1.0
        assert 250 < trial.user_attrs[TOTAL_J] < 1000
        assert "energy/shared_gpu" not in trial.user_attrs
