"""Power limits of a search's trials: put back when energy prunes a trial, and when its process is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from controlling import FOUND_W, WITHIN_S, limit_w, operator_sets, seconds_until
from optuna.trial import TrialState
from sweeping import Simulated, sqlite, wait_until
from test_pruning import WATTS, hf_trainer

from energy_plugins.optuna import StudyEnergyBudget, study_energy_j
from energy_plugins.optuna.attributes import PRUNED, TOTAL_J
from energy_plugins.optuna.transformers import EnergyPruningCallback
from energy_plugins.testing import Constant, Simulation
from energy_plugins.transformers import energy_hp_space
from energy_plugins.units import j_to_kwh

SET_W = 450
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def gpu(simulated: Simulated, monkeypatch: pytest.MonkeyPatch) -> Simulation:
    monkeypatch.setenv("ENERGY_REPORT_TABLE", "0")
    simulation = simulated(Constant(WATTS))
    operator_sets(FOUND_W)
    return simulation


def nothing_else(_: optuna.Trial) -> dict[str, Any]:
    return {}


class Watching(EnergyPruningCallback):
    """Notes under which limit steps were made."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.seen: set[float] = set()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seen.add(limit_w())
        super().on_step_end(*args, **kwargs)


def search(folder: Path, callback: EnergyPruningCallback, trials: int) -> None:
    """Search until energy has pruned all trials, which Optuna ends by finding none that is best."""
    trainer = hf_trainer(folder, callback, 0.1, num_train_epochs=100)
    with pytest.raises(ValueError, match="Record does not exist|No trials are completed"):
        trainer.hyperparameter_search(
            energy_hp_space(nothing_else, power_limits_w=[SET_W]),
            None,
            trials,
            "minimize",
            "optuna",
            storage=sqlite(folder),
            study_name="hf",
            load_if_exists=True,
        )
    assert limit_w() == FOUND_W


def test_a_trial_that_its_energy_prunes_leaves_the_gpu_as_it_was_found(tmp_path: Path) -> None:
    callback = Watching(budget_j=250.0)
    search(tmp_path, callback, 2)
    assert callback.seen == {SET_W}
    for trial in optuna.load_study(study_name="hf", storage=sqlite(tmp_path)).trials:
        assert trial.state == TrialState.PRUNED
        assert trial.user_attrs[PRUNED] == 1.0
        assert trial.params == {"power_limit_w": SET_W}


def test_so_does_one_that_the_studys_budget_ends(tmp_path: Path) -> None:
    study = optuna.create_study(study_name="hf", storage=sqlite(tmp_path))
    StudyEnergyBudget(j_to_kwh(300.0)).begin(study)
    callback = Watching()
    search(tmp_path, callback, 1)
    assert callback.seen == {SET_W}
    assert 300 <= study_energy_j(study) < 1200


SEARCH = """
import sys
from pathlib import Path
from test_pruning import hf_trainer
from energy_plugins.optuna.transformers import EnergyPruningCallback
from energy_plugins.transformers import energy_hp_space
trainer = hf_trainer(Path(sys.argv[1]), EnergyPruningCallback(), 0.05, num_train_epochs=10000, eval_strategy="no")
space = energy_hp_space(lambda _: {}, power_limits_w=[int(sys.argv[2])])
trainer.hyperparameter_search(space, None, 1, "minimize", "optuna", storage=sys.argv[3], study_name="hf")
"""


def test_a_search_that_is_killed_is_charged_and_leaves_the_gpu_as_it_was_found(gpu: Simulation, tmp_path: Path) -> None:
    folders = [ROOT, ROOT / "tests/sweeps"]
    environment = {**gpu.environment(), "PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, "-W", "ignore", "-c", SEARCH, str(tmp_path), str(SET_W), sqlite(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        seconds_until(lambda: limit_w() == SET_W)
        study = optuna.load_study(study_name="hf", storage=sqlite(tmp_path))
        wait_until(lambda: study_energy_j(study) > WATTS)
        process.send_signal(signal.SIGKILL)
        assert seconds_until(lambda: limit_w() == FOUND_W, WITHIN_S) < WITHIN_S
    (trial,) = study.trials
    assert trial.state == TrialState.RUNNING
    assert trial.user_attrs[TOTAL_J] > WATTS
