"""Trials of a real Ray cluster on this machine, on simulated GPUs: joules, budgets, shared GPUs, limits put back."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import GradientState
from sweeping import wait_until

from energy_plugins.control.journal import Journal
from energy_plugins.measure.devices import visible_gpus
from energy_plugins.testing import Constant, Simulation, simulated_gpus

pytest.importorskip("ray.tune", reason="needs Ray Tune: pip install energy-plugins[ray]")

import ray
from ray import tune
from ray_trainings import train
from seen_limit import limit_w

from energy_plugins.ray import EnergyBudgetStopper, experiment_energy_j, trial_energy
from energy_plugins.ray.charges import TrialEnergy
from energy_plugins.ray.trial import own_trial
from energy_plugins.units import j_to_kwh

pytestmark = [
    pytest.mark.alone,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

WATTS = (300.0, 200.0)
FOUND_W = 700.0
SEEN_BY_WORKERS = [str(Path(__file__).parent), str(Path(__file__).parents[2])]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulation]:
    """Give two GPUs to a cluster of two cores."""
    with ExitStack() as undo:
        simulation = undo.enter_context(simulated_gpus([Constant(watts) for watts in WATTS]))
        variables = undo.enter_context(pytest.MonkeyPatch.context())
        folders = {name: str(tmp_path_factory.mktemp("ray")) for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME")}
        settings = {"RAY_USAGE_STATS_ENABLED": "0", "ENERGY_REPORT_TABLE": "0", "PYTHONPATH": ":".join(SEEN_BY_WORKERS)}
        for name, value in {**folders, **settings}.items():
            variables.setenv(name, value)
        ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, object_store_memory=1 << 27, log_to_driver=False)
        undo.callback(ray.shutdown)
        yield simulation
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # files that Ray leaves to the garbage collector
        gc.collect()


def fit(space: dict[str, Any], folder: Path, gpu: float = 1.0, **run: Any) -> Any:
    tuner = tune.Tuner(
        tune.with_resources(train, {"cpu": 1, "gpu": gpu}),
        param_space=space,
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(storage_path=str(folder), verbose=0, **run),
    )
    return tuner.fit()


def energy_of(result: Any) -> TrialEnergy:
    energy = trial_energy(result)
    assert energy is not None
    return energy


def assert_put_back(simulation: Simulation) -> None:
    def is_back() -> bool:
        with Journal(simulation.journal) as journal:
            return not list(journal.names())

    wait_until(is_back)
    assert limit_w() == FOUND_W


@pytest.fixture(scope="module")
def experiment(cluster: Simulation, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Give four trials under limits: two that end, one that is stopped, and one that is killed."""
    space = {
        "power_limit_w": tune.grid_search([400, 450, 500, 550]),
        "epochs": tune.sample_from(lambda config: 2 if config["power_limit_w"] < 500 else 100),
        "killed_at": tune.sample_from(lambda config: 32 if config["power_limit_w"] == 550 else None),
    }
    budget = EnergyBudgetStopper(trial_kwh=j_to_kwh(1500.0))
    results = fit(space, tmp_path_factory.mktemp("results"), stop=budget, callbacks=[budget])
    assert_put_back(cluster)
    assert budget.drawn_j == pytest.approx(experiment_energy_j(results.experiment_path))
    return results


def test_each_trial_reports_the_joules_of_its_own_gpu(experiment: Any) -> None:
    watts = {gpu.uuid: WATTS[gpu.index] for gpu in visible_gpus()}
    assert {experiment[index].metrics["energy/gpus"] for index in range(2)} == watts.keys()
    for index in range(2):
        reported, energy = experiment[index].metrics, energy_of(experiment[index])
        expected_j = watts[reported["energy/gpus"]] * reported["energy/duration_s"]
        assert reported["energy/total_j"] == pytest.approx(expected_j, rel=0.15)
        assert reported["energy/simulated"] == 1.0
        assert "energy/shared_gpu" not in reported
        assert energy.ended
        assert energy.total_j == pytest.approx(watts[energy.gpus[0]] * energy.duration_s, rel=0.02)


def test_each_trial_has_its_own_power_limit(experiment: Any) -> None:
    for result in experiment:
        assert result.metrics.get("limit_w", result.config["power_limit_w"]) == result.config["power_limit_w"]


def test_a_trial_that_draws_too_much_is_stopped_and_charged(experiment: Any) -> None:
    stopped = experiment[2]
    assert stopped.error is None
    assert stopped.metrics["training_iteration"] < 50
    assert 1500 <= energy_of(stopped).total_j < 4000


def test_a_trial_that_is_killed_is_charged(experiment: Any) -> None:
    killed = experiment[3]
    assert "died" in str(killed.error)
    assert not energy_of(killed).ended
    assert energy_of(killed).total_j > 100


def test_the_process_that_began_the_experiment_is_no_trial(cluster: Simulation) -> None:
    assert own_trial() is None


def test_half_a_gpu_is_marked_and_a_budget_ends_a_trial_before_it_reports(cluster: Simulation, tmp_path: Path) -> None:
    budget = EnergyBudgetStopper(energy_kwh=j_to_kwh(500.0))
    began_s = time.monotonic()
    (result,) = fit({"step_s": 20.0}, tmp_path, 0.5, stop=budget, callbacks=[budget])

    assert time.monotonic() - began_s < 100
    assert budget.drawn_j >= 500
    assert energy_of(result).shared_gpu == 1
    assert energy_of(result).total_j > 100


def test_a_search_of_transformers_reports_joules_and_sets_the_limit_of_each_trial(
    cluster: Simulation, tmp_path: Path
) -> None:
    from searching import make_trainer, objective

    from energy_plugins.ray.transformers import EnergyReportCallback
    from energy_plugins.transformers import energy_hp_space

    # A training that an exception ended, in a test before this, leaves weak references there, which cannot be pickled.
    GradientState._reset_state()
    best: Any = make_trainer(tmp_path / "trainer", EnergyReportCallback()).hyperparameter_search(
        energy_hp_space(lambda _: {"learning_rate": tune.choice([1e-6])}, power_limits_w=[450]),
        objective,
        2,
        "minimize",
        "ray",
        resources_per_trial={"cpu": 1, "gpu": 1},
        max_concurrent_trials=1,
        reuse_actors=True,
        storage_path=str(tmp_path),
        verbose=0,
    )

    assert_put_back(cluster)
    assert best.objective == 450.0
    trials = best.run_summary.trials
    assert len(trials) == 2
    for trial in trials:
        reported = trial.last_result
        assert reported["objective"] == reported["eval_loss"] == 450.0
        assert reported["energy/gpus"] in {gpu.uuid for gpu in visible_gpus()}
        assert reported["energy/total_j"] > 100  # 1.5 s of steps, and three evaluations
    assert experiment_energy_j(best.run_summary.experiment_path) >= sum(
        0.9 * trial.last_result["energy/total_j"] for trial in trials
    )
