"""Every trial is charged what it drew, however it ends, in whatever storage; shared GPUs are marked."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from sweeping import Simulated, journal, sqlite, wait_until

from energy_plugins.errors import ConfigError, DeviceError
from energy_plugins.optuna import (
    StudyEnergyBudget,
    charged,
    constrain_energy,
    energy_constraints,
    energy_objective,
    study_energy_j,
)
from energy_plugins.optuna.attributes import TOTAL_J, TRIAL, own_float
from energy_plugins.testing import Constant, Simulation
from energy_plugins.units import j_to_kwh

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")  # gRPC, constraints
BOTH = [optuna.study.StudyDirection.MINIMIZE] * 2
WATTS = 300.0


@pytest.fixture
def gpu(simulated: Simulated) -> Simulation:
    return simulated(Constant(WATTS))


@pytest.fixture(params=["memory", "sqlite", "journal", "grpc"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "memory":
        yield optuna.storages.InMemoryStorage()
    elif request.param == "sqlite":
        yield sqlite(tmp_path)
    elif request.param == "journal":
        yield journal(tmp_path)
    else:
        yield from grpc_storage(tmp_path)


def grpc_storage(folder: Path) -> Iterator[Any]:
    grpc = pytest.importorskip("grpc", reason="gRPC storage needs grpcio")
    if not hasattr(optuna.storages, "GrpcStorageProxy"):
        pytest.skip("this Optuna has no gRPC storage")
    from optuna.storages._grpc import server

    made = server.make_server(optuna.storages.RDBStorage(sqlite(folder)), "localhost", 0)
    port = made.add_insecure_port("localhost:0") if grpc else 0
    made.start()
    proxy = optuna.storages.GrpcStorageProxy(host="localhost", port=port)
    yield proxy
    proxy.remove_session()
    made.stop(None).wait()


def rest(trial: optuna.Trial) -> float:
    time.sleep(0.3 if trial.number != 1 else 0.5)
    if trial.number == 1:
        raise optuna.TrialPruned
    if trial.number == 2:
        raise ZeroDivisionError
    return 1.0


def test_trials_are_charged_however_they_end(gpu: Simulation, storage: Any) -> None:
    study = optuna.create_study(storage=storage, directions=BOTH)
    study.optimize(lambda trial: energy_objective(trial, rest), n_trials=4, catch=ZeroDivisionError)

    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE", "PRUNED", "FAIL", "COMPLETE"]
    for trial in study.trials:
        assert all(type(value) is float for key, value in trial.user_attrs.items() if key.startswith("energy/"))
        duration_s = trial.user_attrs["energy/duration_s"]
        assert trial.user_attrs[TOTAL_J] == pytest.approx(WATTS * duration_s, rel=0.1)
        assert trial.user_attrs["energy/avg_power_w"] == pytest.approx(WATTS, rel=0.1)
        assert "energy/shared_gpu" not in trial.user_attrs
    assert study.trials[0].user_attrs["energy/simulated"] == 1.0
    assert study.trials[0].values[1] == study.trials[0].user_attrs[TOTAL_J]
    assert study_energy_j(study) == pytest.approx(sum(trial.user_attrs[TOTAL_J] for trial in study.trials))


def test_a_metric_is_taken_from_a_mapping(gpu: Simulation) -> None:
    study = optuna.create_study(directions=BOTH)
    study.optimize(lambda trial: energy_objective(trial, lambda _: {"loss": 2.0}, "loss"), n_trials=1)
    assert study.trials[0].values[0] == 2.0


@pytest.mark.parametrize(
    ("returned", "complaint"), [({"acc": 1.0}, "no 'loss', but 'acc'"), ({}, "but nothing"), (None, "is no number")]
)
def test_a_metric_that_does_not_arrive_is_named(gpu: Simulation, returned: Any, complaint: str) -> None:
    study = optuna.create_study(directions=BOTH)
    with pytest.raises(ConfigError, match=complaint):
        study.optimize(lambda trial: energy_objective(trial, lambda _: returned, "loss"), n_trials=1)
    assert own_float(0, study.trials[0].user_attrs, TOTAL_J) is not None


def test_a_metric_of_nan_fails_the_trial_and_its_joules_count(gpu: Simulation) -> None:
    study = optuna.create_study(directions=BOTH)
    study.optimize(lambda trial: energy_objective(trial, lambda _: math.nan), n_trials=1)
    assert study.trials[0].state == optuna.trial.TrialState.FAIL
    assert study_energy_j(study) > 0


@pytest.mark.parametrize("directions", [["minimize"], ["minimize", "maximize"], ["minimize"] * 3])
def test_a_study_of_other_directions_is_refused_before_anything_runs(directions: list[Any]) -> None:
    study = optuna.create_study(directions=directions)
    with pytest.raises(ConfigError, match="directions"):
        energy_objective(study.ask(), lambda _: pytest.fail("it ran"))


def test_without_a_gpu_there_are_no_joules_and_no_zero(monkeypatch: pytest.MonkeyPatch, gpu: Simulation) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    study = optuna.create_study(directions=BOTH)
    with pytest.warns(RuntimeWarning), pytest.raises(DeviceError, match="doctor"):
        energy_objective(study.ask(), lambda _: pytest.fail("it ran"))
    assert TOTAL_J not in study.trials[0].user_attrs


def test_what_a_retried_trial_inherits_counts_once(gpu: Simulation) -> None:
    study = optuna.create_study(direction="minimize")
    study.add_trial(
        optuna.trial.create_trial(
            state=optuna.trial.TrialState.WAITING, user_attrs={TOTAL_J: 1e6, TRIAL: 7.0, "energy/shared_gpu": 1.0}
        )
    )
    assert study_energy_j(study) == 0
    trial = study.ask()
    with charged(trial):
        time.sleep(0.2)
    assert 0 < study_energy_j(study) < 1000
    assert own_float(0, study.trials[0].user_attrs, "energy/shared_gpu") is None


def test_windows_of_a_trial_add_up_and_those_inside_others_do_not(gpu: Simulation) -> None:
    study = optuna.create_study()
    trial = study.ask()
    with charged(trial) as outer:
        time.sleep(0.2)
        with charged(trial) as inner:
            assert inner is outer
    first_j = study_energy_j(study)
    with charged(trial):
        time.sleep(0.2)
    assert study_energy_j(study) == pytest.approx(2 * first_j, rel=0.3)


def test_threads_that_share_a_gpu_are_marked(gpu: Simulation) -> None:
    study = optuna.create_study(directions=BOTH)
    together = threading.Barrier(2)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        return energy_objective(trial, lambda _: float(together.wait(20)))

    with pytest.warns(RuntimeWarning, match="cannot be told apart"):
        study.optimize(objective, n_trials=2, n_jobs=2)
    assert [trial.user_attrs["energy/shared_gpu"] for trial in study.trials] == [1.0, 1.0]


def test_trials_on_gpus_of_their_own_are_not_marked(simulated: Simulated) -> None:
    simulated([Constant(100), Constant(400)])
    study = optuna.create_study(directions=BOTH)
    together = threading.Barrier(2)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        def wait(_: object) -> float:
            together.wait(20)
            time.sleep(0.5)
            return 1.0

        return energy_objective(trial, wait, devices=[trial.number])

    study.optimize(objective, n_trials=2, n_jobs=2)
    assert [trial.user_attrs["energy/avg_power_w"] for trial in study.trials] == pytest.approx([100, 400], rel=0.1)
    assert not any("energy/shared_gpu" in trial.user_attrs for trial in study.trials)


WORKER = """
import sys, time, optuna
from energy_plugins.optuna import charged
study = optuna.load_study(study_name=sys.argv[2], storage=sys.argv[1])
trial = study.ask()
with charged(trial):
    print("begun", flush=True)
    time.sleep(60)
"""


def worker(storage: str, study: str, simulation: Simulation) -> subprocess.Popen[str]:
    begun = subprocess.Popen(
        [sys.executable, "-c", WORKER, storage, study], stdout=subprocess.PIPE, text=True, env=simulation.environment()
    )
    assert begun.stdout is not None
    assert begun.stdout.readline() == "begun\n"
    return begun


def test_a_killed_trial_is_charged_and_its_gpu_is_free_again(gpu: Simulation, tmp_path: Path) -> None:
    study = optuna.create_study(storage=sqlite(tmp_path), study_name="one")
    with worker(sqlite(tmp_path), "one", gpu) as process:
        wait_until(lambda: study_energy_j(study) > 0.9 * WATTS)
        process.send_signal(signal.SIGKILL)
    (trial,) = study.get_trials()
    assert trial.state == optuna.trial.TrialState.RUNNING
    budget = StudyEnergyBudget(j_to_kwh(study_energy_j(study) + 1.0)).begin(study)
    study.optimize(charged_rest, n_trials=5, callbacks=[budget])
    assert len(study.trials) == 2
    assert "energy/shared_gpu" not in study.trials[1].user_attrs


def charged_rest(trial: optuna.Trial) -> float:
    with charged(trial):
        time.sleep(0.2)
    return 1.0


def test_two_studies_of_two_processes_on_one_gpu_are_marked(gpu: Simulation, tmp_path: Path) -> None:
    optuna.create_study(storage=sqlite(tmp_path), study_name="other")
    study = optuna.create_study(storage=optuna.storages.InMemoryStorage())
    process = worker(sqlite(tmp_path), "other", gpu)
    with process:
        with pytest.warns(RuntimeWarning, match="shares a GPU"):
            charged_rest(study.ask())
        process.kill()
    assert study.trials[0].user_attrs["energy/shared_gpu"] == 1.0


def test_a_study_ends_when_its_budget_is_spent_and_so_do_its_resumed_ones(gpu: Simulation, tmp_path: Path) -> None:
    budget = StudyEnergyBudget(j_to_kwh(200.0))
    study = optuna.create_study(storage=sqlite(tmp_path), study_name="one")
    study.optimize(charged_rest, n_trials=50, callbacks=[budget])
    made = len(study.trials)
    assert made < 8
    assert 200 <= study_energy_j(study) < 350
    again = optuna.load_study(study_name="one", storage=sqlite(tmp_path))
    again.optimize(charged_rest, n_trials=50)
    assert [trial.state.name for trial in again.trials[made:]] == ["PRUNED"]


def test_who_asks_for_trials_is_told_that_the_budget_is_spent(gpu: Simulation) -> None:
    study = optuna.create_study()
    StudyEnergyBudget(j_to_kwh(10.0)).begin(study)
    trial = study.ask()
    charged_rest(trial)
    study.tell(trial, 1.0)
    with pytest.raises(optuna.TrialPruned, match="budget of .* is spent"):
        charged_rest(study.ask())


@pytest.mark.parametrize("budget", [0, -1.0, math.nan, math.inf, True, "20"])
def test_a_budget_that_is_none_is_refused(budget: Any) -> None:
    with pytest.raises(ConfigError, match="energy_kwh is"):
        StudyEnergyBudget(budget)


class Gone(optuna.storages.InMemoryStorage):
    """A storage that goes away."""

    gone = False

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        if self.gone:
            raise OSError("no route to host")
        super().set_trial_user_attr(trial_id, key, value)


def test_a_storage_that_goes_away_in_mid_trial_ends_no_training(gpu: Simulation) -> None:
    storage = Gone()
    study = optuna.create_study(storage=storage)

    def train(trial: optuna.Trial) -> float:
        with charged(trial) as charge:
            storage.gone = True
            time.sleep(1.3)  # a beat fails
            storage.gone = False
        return charge.drawn_j

    with pytest.warns(RuntimeWarning, match="the ledger has it"):
        study.optimize(train, n_trials=1)
    assert study_energy_j(study) == pytest.approx(study.best_value)


def test_a_bound_is_set_once_and_at_the_end(gpu: Simulation) -> None:
    study = optuna.create_study()
    trial = study.ask()
    with pytest.raises(ConfigError, match="measure it first"):
        constrain_energy(trial, 10.0)
    charged_rest(trial)
    constrain_energy(trial, 10.0)
    constrain_energy(trial, 1e9)
    study.tell(trial, 1.0)
    drawn_j = study.trials[0].user_attrs[TOTAL_J]
    assert energy_constraints(study.trials[0]) == (drawn_j - 10.0,)
    if hasattr(optuna.Trial, "set_constraint"):
        with pytest.raises(ValueError, match="No feasible"):
            _ = study.best_trial
    assert energy_constraints(optuna.trial.create_trial(value=1.0)) == (1.0,)


def test_a_trial_that_ended_unseen_is_left_alone(gpu: Simulation) -> None:
    study = optuna.create_study()
    trial = study.ask()
    with charged(trial):
        study.tell(trial, 1.0)
    assert study.trials[0].value == 1.0
