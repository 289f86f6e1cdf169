"""``hyperparameter_search`` with Optuna: joules in an objective that asks for them (others: test_pruning.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from sweeping import Simulated, sqlite
from test_pruning import WATTS, hf_trainer, hp_space

from energy_plugins.optuna.attributes import TOTAL_J
from energy_plugins.optuna.transformers import EnergyPruningCallback
from energy_plugins.testing import Constant, Simulation

METRIC = "eval_energy_j"


@pytest.fixture(autouse=True)
def gpu(simulated: Simulated, monkeypatch: pytest.MonkeyPatch) -> Simulation:
    monkeypatch.setenv("ENERGY_REPORT_TABLE", "0")
    return simulated(Constant(WATTS))


def search(
    folder: Path, objective: Callable[[dict[str, float]], Any], *, step_s: float = 0.05, **settings: Any
) -> list[FrozenTrial]:
    """Search two trials with two objectives, and return them."""
    trainer = hf_trainer(folder, EnergyPruningCallback(energy_metric=METRIC), step_s, **settings)
    both: Any = ["minimize", "minimize"]
    trainer.hyperparameter_search(hp_space, objective, 2, both, "optuna", storage=sqlite(folder), study_name="hf")
    return optuna.load_study(study_name="hf", storage=sqlite(folder)).trials


def loss_and_joules(metrics: dict[str, float]) -> list[float]:
    return [metrics["eval_loss"], metrics[METRIC]]


def test_an_objective_may_ask_for_joules(tmp_path: Path) -> None:
    for trial in search(tmp_path, loss_and_joules, step_s=0.25):
        total_j = trial.user_attrs[TOTAL_J]
        assert 0.7 * total_j < trial.values[1] < 1.2 * total_j  # at the last evaluation, which is not the very end
        assert trial.values[1] > 0.9 * 12 * 0.25 * WATTS


def test_an_evaluation_after_the_training_has_its_whole_joules(tmp_path: Path) -> None:
    trials = search(tmp_path, loss_and_joules, eval_strategy="no")
    assert [trial.values[1] for trial in trials] == [trial.user_attrs[TOTAL_J] for trial in trials]


def test_joules_that_nobody_knows_fail_the_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.warns(RuntimeWarning):
        trials = search(tmp_path, loss_and_joules)
    assert [trial.state for trial in trials] == [TrialState.FAIL, TrialState.FAIL]
