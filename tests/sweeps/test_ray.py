"""Trials of a real Ray cluster on this machine, on simulated GPUs: joules, budgets, shared GPUs, limits put back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sweeping import wait_until

from energy_plugins.control.journal import Journal
from energy_plugins.measure.devices import visible_gpus
from energy_plugins.testing import Constant, Simulation, simulated_gpus

ray = pytest.importorskip("ray", reason="needs Ray Tune: pip install energy-plugins[ray]")
tune = pytest.importorskip("ray.tune", reason="needs Ray Tune: pip install energy-plugins[ray]")

from energy_plugins.ray import EnergyBudgetStopper, experiment_energy_j
from energy_plugins.ray.charges import TrialEnergy, read_energy
from energy_plugins.units import j_to_kwh

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

WATTS = (300.0, 200.0)
FOUND_W = 700.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulation]:
    """Give two GPUs to a cluster of two cores."""
    with ExitStack() as undo:
        simulation = undo.enter_context(simulated_gpus([Constant(watts) for watts in WATTS]))
        variables = undo.enter_context(pytest.MonkeyPatch.context())
        folders = {name: str(tmp_path_factory.mktemp("ray")) for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME")}
        here = str(Path(__file__).parent)
        settings = {"RAY_USAGE_STATS_ENABLED": "0", "ENERGY_REPORT_TABLE": "0", "PYTHONPATH": here}
        for name, value in {**simulation.variables(), **folders, **settings}.items():
            variables.setenv(name, value)
        ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, object_store_memory=1 << 27, log_to_driver=False)
        undo.callback(ray.shutdown)
        yield simulation


def fit(space: dict[str, Any], folder: Path, gpu: float = 1.0, **run: Any) -> Any:
    def train(config: dict[str, Any]) -> None:
        import ray_trainings

        ray_trainings.train(config)

    tuner = tune.Tuner(
        tune.with_resources(train, {"cpu": 1, "gpu": gpu}),
        param_space=space,
        run_config=tune.RunConfig(storage_path=str(folder), verbose=0, **run),
    )
    return tuner.fit()


def energy_of(result: Any) -> TrialEnergy:
    energy = read_energy(result.filesystem, result.path)
    assert energy is not None
    return energy


def assert_put_back(simulation: Simulation) -> None:
    import ray_trainings

    def found() -> bool:
        with Journal(simulation.journal) as journal:
            return not list(journal.names())

    wait_until(found)
    assert ray_trainings.limit_w() == FOUND_W


def test_each_trial_reports_the_joules_of_its_own_gpu_under_its_own_limit(
    cluster: Simulation, tmp_path: Path
) -> None:
    results = fit({"power_limit_w": tune.grid_search([400, 500])}, tmp_path)

    watts = {gpu.uuid: WATTS[gpu.index] for gpu in visible_gpus()}
    assert {result.metrics["energy/gpus"] for result in results} == watts.keys()
    for result in results:
        reported, energy = result.metrics, energy_of(result)
        assert result.error is None
        assert reported["limit_w"] == reported["config"]["power_limit_w"]
        expected_j = watts[reported["energy/gpus"]] * reported["energy/duration_s"]
        assert reported["energy/total_j"] == pytest.approx(expected_j, rel=0.1)
        assert reported["energy/simulated"] == 1.0
        assert "energy/shared_gpu" not in reported
        assert energy.ended
        assert energy.total_j == pytest.approx(watts[energy.gpus[0]] * energy.duration_s, rel=0.02)
        assert energy.total_j >= 0.95 * reported["energy/total_j"]
    assert experiment_energy_j(results.experiment_path) == pytest.approx(sum(energy_of(one).total_j for one in results))
    assert_put_back(cluster)


def test_a_trial_that_is_killed_or_stopped_is_charged_and_its_limit_is_put_back(
    cluster: Simulation, tmp_path: Path
) -> None:
    budget = EnergyBudgetStopper(trial_kwh=j_to_kwh(500.0))
    space = {"killed_at": tune.grid_search([25, None]), "power_limit_w": 400, "epochs": 100}
    results = fit(space, tmp_path, stop=budget, callbacks=[budget])

    assert_put_back(cluster)
    killed, stopped = sorted(results, key=lambda result: result.error is None)
    assert killed.error is not None
    assert stopped.error is None
    assert stopped.metrics["limit_w"] == 400
    assert 500 <= energy_of(stopped).total_j < 1500
    assert not energy_of(killed).ended
    assert energy_of(killed).total_j > 100
    assert budget.drawn_j == pytest.approx(experiment_energy_j(results.experiment_path))


def test_trials_with_half_a_gpu_are_marked_and_a_budget_ends_them_before_they_report(
    cluster: Simulation, tmp_path: Path
) -> None:
    budget = EnergyBudgetStopper(energy_kwh=j_to_kwh(1000.0))
    began_s = time.monotonic()
    results = fit({"step_s": tune.grid_search([20.0, 30.0])}, tmp_path, 0.5, stop=budget, callbacks=[budget])

    assert time.monotonic() - began_s < 40
    assert budget.drawn_j >= 1000
    for result in results:
        energy = energy_of(result)
        assert energy.shared_gpu == 1
        assert energy.total_j > 100
