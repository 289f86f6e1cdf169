"""Bad input is refused where it is given, with its name and a remedy."""

from __future__ import annotations

import math
from typing import Any

import pytest
from trainings import Gpu, training_on

from energy_plugins.errors import ConfigError, WindowError
from energy_plugins.tune import Measurement, ZeusCost, of_all_ranks, search_power_limit

GOOD: dict[str, Any] = {"limits_w": (200.0, 700.0), "start_w": 700.0}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"start_w": 750.0}, "the start is 750.0, outside the limits 200.0 to 700.0"),
        ({"start_w": math.nan}, "the start is nan"),
        ({"limits_w": (700.0, 200.0)}, "the limits are 700.0 to 200.0"),
        ({"limits_w": (0.0, 700.0)}, "the limits are 0.0"),
        ({"limits_w": (200.0, math.inf)}, "to inf"),
        ({"max_slowdown": -1.0}, "max_slowdown is -1.0, but must be above -1"),
        ({"max_slowdown": math.nan}, "max_slowdown is nan"),
        ({"resolution_w": 0.0}, "resolution is 0.0"),
        ({"resolution_w": math.nan}, "resolution is nan"),
        ({"budget_s": 0.0}, "budget_s is 0.0"),
        ({"budget_s": math.nan}, "budget_s is nan"),
        ({"host_power_w": -1.0}, "host_power_w is -1.0"),
        ({"host_power_w": math.inf}, "host_power_w is inf"),
        ({"objective": "time"}, "objective is 'time', but must be one of 'energy', 'energy_delay'"),
    ],
)
def test_says_what_is_wrong_before_anything_is_measured(asked: dict[str, Any], said: str) -> None:
    training = training_on(Gpu())
    with pytest.raises(ConfigError, match=said):
        search_power_limit(training.measure, **{**GOOD, **asked})
    assert training.asked == []


@pytest.mark.parametrize("name", ["step_time_s", "step_energy_j", "step_time_sem", "step_energy_sem", "drawn_w"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_a_window_that_cannot_be_is_refused(name: str, value: float) -> None:
    values = {"step_time_s": 1.0, "step_energy_j": 1.0, "step_time_sem": 0.0, "step_energy_sem": 0.0, "drawn_w": 1.0}
    Measurement(**values)
    with pytest.raises(WindowError, match=f"{name} is {value}"):
        Measurement(**{**values, name: value})


@pytest.mark.parametrize("name", ["step_time_s", "step_energy_j", "drawn_w"])
def test_so_is_one_of_nothing(name: str) -> None:
    values = {"step_time_s": 1.0, "step_energy_j": 1.0, "step_time_sem": 0.0, "step_energy_sem": 0.0, "drawn_w": 1.0}
    with pytest.raises(WindowError, match=f"{name} is 0.0"):
        Measurement(**{**values, name: 0.0})


@pytest.mark.parametrize(("eta", "power_w"), [(-0.1, 1.0), (1.1, 1.0), (math.nan, 1.0), (0.5, 0.0), (0.5, math.nan)])
def test_a_cost_that_makes_no_sense_is_refused(eta: float, power_w: float) -> None:
    with pytest.raises(ConfigError):
        ZeusCost(eta, power_w)


def test_ranks_draw_together_and_wait_for_the_slowest() -> None:
    fast, slow = Measurement(1.0, 300.0, 0.01, 3.0, 300.0), Measurement(1.2, 400.0, 0.02, 4.0, 350.0)
    both = of_all_ranks([fast, slow])
    assert both == Measurement(1.2, 700.0, 0.02, 5.0, 350.0)
    assert of_all_ranks([fast, slow], limited=[0]) == Measurement(1.2, 700.0, 0.02, 5.0, 300.0)
    cost = ZeusCost.of_all(0.5, 400.0, 400.0)
    assert cost.cost(both.step_time_s, both.step_energy_j) == pytest.approx(0.5 * 700 + 0.5 * 800 * 1.2)
    with pytest.raises(WindowError, match="no rank"):
        of_all_ranks([])
    with pytest.raises(WindowError, match="no rank"):
        of_all_ranks([fast], limited=[])
