"""Successive halving by joules, through Ray Tune: the same trials go on as in `test_halving`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from energy_plugins.errors import ConfigError

ray = pytest.importorskip("ray", reason="needs Ray Tune: pip install energy-plugins[ray]")
tune = pytest.importorskip("ray.tune", reason="needs Ray Tune: pip install energy-plugins[ray]")

from ray.tune.schedulers import TrialScheduler  # noqa: E402 - after the skip

from energy_plugins.ray import EnergySuccessiveHalvingScheduler  # noqa: E402 - after the skip

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as variables:
        variables.setenv("RAY_USAGE_STATS_ENABLED", "0")
        variables.setenv("PYTHONPATH", f"{Path(__file__).parent}:{Path(__file__).parents[2]}")
        ray.init(num_cpus=1, include_dashboard=False, object_store_memory=1 << 27, log_to_driver=False)
        yield
        ray.shutdown()


def train(config: dict[str, Any]) -> None:
    trial = config["trial"]
    for epoch in range(1, trial["epochs"] + 1):
        tune.report({"energy/total_j": trial["epoch_j"] * epoch, "loss": 10.0 - trial["fall"] * epoch})


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_cheap_trial_is_kept_that_has_less_progress_in_an_epoch(tmp_path: Path) -> None:
    trials = [
        {"epoch_j": 10.0, "fall": 1.0, "epochs": 10},
        {"epoch_j": 5.0, "fall": 0.6, "epochs": 20},
        {"epoch_j": 20.0, "fall": 1.2, "epochs": 10},
    ]
    results = tune.Tuner(
        train,
        param_space={"trial": tune.grid_search(trials)},
        tune_config=tune.TuneConfig(
            metric="loss", mode="min", scheduler=EnergySuccessiveHalvingScheduler(first_rung_j=25.0)
        ),
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    ).fit()
    assert not results.errors
    assert {result.config["trial"]["epoch_j"]: result.metrics["training_iteration"] for result in results} == {
        10.0: 10,
        5.0: 20,
        20.0: 2,  # at 40 J, past the rung at 25 J
    }


class Reports:
    """Trials whose reports are told one by one."""

    def __init__(self, scheduler: EnergySuccessiveHalvingScheduler) -> None:
        self.scheduler = scheduler

    def tell(self, trial_id: str, energy_j: object, loss: float) -> bool:
        """Return whether the trial goes on."""
        result = {"energy/total_j": energy_j, "loss": loss}
        trial = SimpleNamespace(trial_id=trial_id)
        return self.scheduler.on_trial_result(None, trial, result) == TrialScheduler.CONTINUE  # type: ignore[arg-type]

    def complete(self, trial_id: str, energy_j: float, loss: float) -> None:
        result = {"energy/total_j": energy_j, "loss": loss}
        self.scheduler.on_trial_complete(None, SimpleNamespace(trial_id=trial_id), result)  # type: ignore[arg-type]


def test_without_a_first_rung_the_first_complete_trial_sets_it() -> None:
    reports = Reports(EnergySuccessiveHalvingScheduler("loss", "min"))
    assert reports.tell("first", 80.0, 1.0)
    assert reports.scheduler.debug_string().endswith("no rungs yet")
    reports.complete("first", 80.0, 1.0)
    assert reports.tell("second", 12.0, 5.0)
    assert reports.scheduler.debug_string().endswith("10 J: 1")
    assert not reports.tell("third", 12.0, 6.0)


def test_more_is_better_where_the_mode_says_so() -> None:
    scheduler = EnergySuccessiveHalvingScheduler(first_rung_j=10.0)
    assert scheduler.set_search_properties("loss", "max")
    reports = Reports(scheduler)
    assert reports.tell("first", 12.0, 5.0)
    assert not reports.tell("second", 12.0, 4.0)
    assert reports.tell("third", 12.0, 6.0)
    assert not scheduler.set_search_properties("loss", None), "two that name the metric"


def test_what_is_not_measured_is_not_stopped_and_is_told_once() -> None:
    reports = Reports(EnergySuccessiveHalvingScheduler("loss", "min", first_rung_j=1.0))
    assert reports.tell("first", 5.0, 1.0)
    with pytest.warns(RuntimeWarning, match="trial second reports no energy/total_j"):
        assert reports.tell("second", None, 1e6)
    assert reports.tell("second", None, 1e6)


def test_joules_that_are_not_known_yet_are_waited_for() -> None:
    reports = Reports(EnergySuccessiveHalvingScheduler("loss", "min", first_rung_j=1.0))
    assert reports.tell("first", 5.0, 1.0)
    assert reports.tell("second", math.nan, 1e6)
    assert not reports.tell("second", 5.0, 1e6)


def test_a_metric_that_is_no_number_ends_a_trial() -> None:
    reports = Reports(EnergySuccessiveHalvingScheduler("loss", "min", first_rung_j=10.0))
    assert not reports.tell("first", 5.0, math.nan)


def test_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match="mode is 'least'"):
        EnergySuccessiveHalvingScheduler("loss", "least")
    with pytest.raises(ConfigError, match="first rung"):
        EnergySuccessiveHalvingScheduler("loss", "min", first_rung_j=math.nan)
    with pytest.raises(ConfigError, match="nothing to judge trials by"):
        EnergySuccessiveHalvingScheduler("loss").on_trial_add(None, None)  # type: ignore[arg-type]
