"""Halving at rungs of joules: the best go on, at once, wherever between two reports the rung was passed."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_plugins.errors import ConfigError
from energy_plugins.tune.sweep.successive_halving import Rungs, Told, goes_on, value_at

VALUES = st.lists(st.floats(-1e6, 1e6), max_size=30)
FACTORS = st.integers(2, 5)


@given(first_j=st.floats(1e-3, 1e9), factor=FACTORS, cuts=st.lists(st.floats(0.0, 1e4), min_size=1, max_size=9))
def test_each_rung_is_passed_once_however_often_a_trial_reports(first_j: float, factor: int, cuts: list[float]) -> None:
    rungs = Rungs(first_j, factor)
    reports_j = [0.0, *sorted(cut * first_j for cut in cuts)]
    passed = [rung for before, now in pairwise(reports_j) for rung in rungs.passed(before, now)]
    assert passed == list(rungs.passed(0.0, reports_j[-1]))
    assert all(rungs.energy_j(rung) <= reports_j[-1] for rung in passed)
    assert rungs.energy_j(len(passed)) > reports_j[-1]
    assert rungs.energy_j(1) == pytest.approx(factor * first_j)


def test_a_rung_itself_is_passed_by_reaching_it() -> None:
    assert list(Rungs(10.0).passed(0.0, 20.0)) == [0, 1]
    assert list(Rungs(10.0).passed(20.0, 39.9)) == []


@pytest.mark.parametrize(("first_j", "factor"), [(0.0, 2), (-1.0, 2), (math.nan, 2), (math.inf, 2), (1.0, 1), (1.0, 0)])
def test_rungs_that_cannot_be(first_j: float, factor: int) -> None:
    with pytest.raises(ConfigError, match=f"{first_j!r} J" if factor == 2 else f"{factor!r}"):
        Rungs(first_j, factor)


@given(now_j=st.floats(2.0, 100.0), rung=st.floats(0.0, 1.0), slope=st.floats(-5.0, 5.0))
def test_a_metric_that_changes_evenly_is_the_same_at_a_rung_however_late_it_is_told(
    now_j: float, rung: float, slope: float
) -> None:
    rung_j = 1.0 + rung * (now_j - 1.0)
    before, now = Told(1.0, slope), Told(now_j, slope * now_j)
    assert value_at(rung_j, before, now) == pytest.approx(slope * rung_j, abs=1e-9)


@pytest.mark.parametrize("before", [None, Told(1.0, math.nan), Told(1.0, math.inf), Told(9.0, 5.0)])
def test_a_rung_without_a_metric_before_it_is_judged_by_what_is_told_now(before: Told | None) -> None:
    assert value_at(4.0, before, Told(9.0, 2.0)) == 2.0


@given(others=VALUES, factor=FACTORS, maximize=st.booleans())
def test_of_all_at_a_rung_the_best_share_would_go_on(others: list[float], factor: int, maximize: bool) -> None:
    """Judged against all others, ties aside, so many go on."""
    distinct = sorted(set(others), reverse=maximize)
    promoted = [
        value
        for value in distinct
        if goes_on(value, [one for one in distinct if one != value], reduction_factor=factor, maximize=maximize)
    ]
    assert promoted == distinct[: max(len(distinct) // factor, 1)]


@given(others=VALUES, value=st.floats(-1e6, 1e6), factor=FACTORS, maximize=st.booleans())
def test_what_is_better_goes_on_wherever_the_worse_does(
    others: list[float], value: float, factor: int, maximize: bool
) -> None:
    better = value + (1.0 if maximize else -1.0)
    if goes_on(value, others, reduction_factor=factor, maximize=maximize):
        assert goes_on(better, others, reduction_factor=factor, maximize=maximize)
    assert goes_on(value, others, reduction_factor=factor, maximize=maximize) == goes_on(
        -value, [-other for other in others], reduction_factor=factor, maximize=not maximize
    )


def test_nan_goes_on_nowhere_and_is_nobodys_rival() -> None:
    assert not goes_on(math.nan, [], maximize=True)
    assert goes_on(1.0, [math.nan, math.nan], maximize=True)
    assert goes_on(1.0, [], maximize=False)
