"""Which knob is turned: limits, clocks, or clocks where no limit can bind and somebody says that they are unlocked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from trainings import Training

from energy_plugins.errors import ConfigError
from energy_plugins.tune import Clocks, PowerLimitChoice, search_power_limit

LIMITS_W, HIGHEST_MHZ = (200.0, 700.0), 1980.0


class TwoKnobs:
    """A training on one GPU whose limit and clock are both turned; it draws ``drawn_w`` if it may."""

    def __init__(self, drawn_w: float, noise: float = 0.003) -> None:
        self.drawn_w = drawn_w
        self.by_limit = Training(lambda limit_w: max(drawn_w / limit_w, 1.0) ** 0.3, self.limited_w, noise=noise)
        self.by_clock = Training(self.clocked_time, self.clocked_w, noise=noise)

    def limited_w(self, limit_w: float) -> float:
        return min(limit_w, self.drawn_w)

    def clocked_time(self, mhz: float) -> float:
        """A part of a step does not wait for the SMs."""
        return 0.7 + 0.3 * HIGHEST_MHZ / mhz

    def clocked_w(self, mhz: float) -> float:
        return self.drawn_w * (0.4 + 0.6 * math.pow(mhz / HIGHEST_MHZ, 2.5))

    def clocks(self, *, unlocked: bool = True) -> Clocks:
        return Clocks(measure=self.by_clock.measure, range_mhz=(300.0, HIGHEST_MHZ), unlocked=unlocked)

    def chosen(self, clocks: Clocks | None, **asked: Any) -> PowerLimitChoice:
        asked = {"limits_w": LIMITS_W, "start_w": 700.0, "max_slowdown": 0.05, **asked}
        return search_power_limit(self.by_limit.measure, clocks=clocks, **asked)


def test_clocks_are_searched_in_megahertz_and_the_limit_found_is_kept() -> None:
    gpu = TwoKnobs(150.0)
    found = gpu.chosen(gpu.clocks(), knob="clocks")
    assert found.limit_w == 700.0
    assert found.clock_mhz == found.limit
    assert found.clock_mhz is not None
    assert 1.03 <= gpu.clocked_time(found.clock_mhz) <= 1.055
    saving = 1 - gpu.clocked_w(found.clock_mhz) * gpu.clocked_time(found.clock_mhz) / 150.0
    assert found.binding
    assert found.expected_saving == pytest.approx(saving, abs=0.01)
    assert gpu.by_limit.asked == []
    assert {mhz for mhz, _ in gpu.by_clock.asked[::2]} == {HIGHEST_MHZ}


def test_auto_turns_clocks_where_no_limit_can_bind() -> None:
    gpu = TwoKnobs(150.0)
    found = gpu.chosen(gpu.clocks(), knob="auto")
    assert found.clock_mhz is not None
    assert found.expected_saving > 0.05
    assert len(gpu.by_limit.asked) == 1, "one window, which stands for the unlocked clock, too"
    assert HIGHEST_MHZ not in gpu.by_clock.asked[0]
    assert len(found.measurements) == 1 + len(gpu.by_clock.asked)


def test_auto_turns_the_limit_where_one_can_bind() -> None:
    gpu = TwoKnobs(650.0)
    found = gpu.chosen(gpu.clocks(), knob="auto")
    assert found.clock_mhz is None
    assert found == replace(TwoKnobs(650.0).chosen(None), clock_mhz=None)
    assert gpu.by_clock.asked == []


@pytest.mark.parametrize("drawn_w", [150.0, 650.0])
@pytest.mark.parametrize("given", [lambda gpu: None, lambda gpu: gpu.clocks(unlocked=False)], ids=["none", "locked"])
def test_auto_stays_with_limits_unless_somebody_says_that_clocks_are_unlocked(
    drawn_w: float, given: Callable[[TwoKnobs], Clocks | None]
) -> None:
    gpu = TwoKnobs(drawn_w)
    found = gpu.chosen(given(gpu), knob="auto")
    assert found.clock_mhz is None
    assert gpu.by_clock.asked == []
    assert found == TwoKnobs(drawn_w).chosen(None)


def test_a_limit_is_asked_for_unless_said_otherwise() -> None:
    gpu = TwoKnobs(150.0)
    assert gpu.chosen(gpu.clocks()).clock_mhz is None
    assert gpu.by_clock.asked == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"knob": "clocks"}, "nobody says that the clocks are unlocked"),
        ({"knob": "volts"}, "knob is 'volts', but must be one of 'limit', 'clocks', 'auto'"),
    ],
)
def test_what_may_not_be_turned_is_refused_before_anything_is_measured(asked: dict[str, Any], said: str) -> None:
    gpu = TwoKnobs(150.0)
    with pytest.raises(ConfigError, match=said):
        gpu.chosen(gpu.clocks(unlocked=False), **asked)
    assert gpu.by_limit.asked == gpu.by_clock.asked == []


def test_a_range_of_clocks_that_makes_no_sense_is_refused() -> None:
    gpu = TwoKnobs(150.0)
    with pytest.raises(ConfigError, match="the limits are"):
        gpu.chosen(replace(gpu.clocks(), range_mhz=(1980.0, 300.0)), knob="auto")
    assert gpu.by_limit.asked == []


def test_auto_keeps_its_budget_over_both_knobs() -> None:
    gpu = TwoKnobs(150.0)
    gpu.chosen(gpu.clocks(), knob="auto", budget_s=60.0)
    assert gpu.by_limit.now_s + gpu.by_clock.now_s <= 60.0
