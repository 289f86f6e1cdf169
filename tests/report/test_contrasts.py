"""Differences and their intervals: the known tests where these apply, and what offsets and drifts may not do."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from energy_plugins.report.comparison.contrasts import Design, Difference, difference
from energy_plugins.report.comparison.linear_model import Floats
from energy_plugins.report.comparison.student import t_quantile

A = np.array([0.10, -0.85, 0.38, -1.30, 0.91])
B = np.array([1.20, 0.40, 0.95, 0.10, 1.75])
NOISE = st.lists(st.floats(-0.02, 0.02), min_size=10, max_size=10).map(np.array)
OFFSETS = st.lists(st.floats(-0.1, 0.1), min_size=3, max_size=3).map(np.array)


def compare(
    base: Floats,
    side: Floats,
    *,
    places: Sequence[str] = (),
    rounds: Sequence[str] = (),
    start_c: Sequence[float | None] = (),
    confidence: float = 0.95,
) -> Difference:
    count = len(base) + len(side)
    design = Design(
        side=[0] * len(base) + [1] * len(side),
        place=places or ["here"] * count,
        round=rounds or [""] * count,
        start_c=start_c or [None] * count,
    )
    return difference(np.concatenate([base, side]), design, 1, 0, confidence)


def ends(found: Difference) -> list[float]:
    assert found.low is not None
    assert found.high is not None
    return [found.low, found.high]


@pytest.mark.parametrize("degrees", [1, 1.4, 2, 2.64, 3, 4, 7.5, 30, 1e5])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.975, 0.999])
def test_quantiles_are_students(degrees: float, confidence: float) -> None:
    assert t_quantile(confidence, degrees) == pytest.approx(stats.t.ppf((1 + confidence) / 2, degrees), rel=1e-6)


@pytest.mark.parametrize(("confidence", "degrees"), [(0.0, 3), (1.0, 3), (0.95, 0), (0.95, math.nan)])
def test_no_quantile_of_nonsense(confidence: float, degrees: float) -> None:
    with pytest.raises(ValueError, match="no t quantile"):
        t_quantile(confidence, degrees)


class TestKnownTests:
    @pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
    def test_rounds_make_it_the_paired_t_test(self, confidence: float) -> None:
        found = compare(A, B, rounds=[*"abcde"] * 2, confidence=confidence)
        interval = stats.ttest_rel(B, A).confidence_interval(confidence)
        assert ends(found) == pytest.approx([interval.low, interval.high])
        assert (found.degrees, found.corrected_for) == (4, ("round",))

    def test_two_sides_of_one_size_make_it_the_t_test(self) -> None:
        found = compare(A, B)
        interval = stats.ttest_ind(B, A).confidence_interval()
        assert ends(found) == pytest.approx([interval.low, interval.high])

    def test_a_small_side_that_varies_widely_is_not_hidden_by_a_large_quiet_one(self) -> None:
        quiet, wild = np.tile([0.0, 0.001], 12), np.array([-0.3, 0.0, 0.36])
        found = compare(quiet, wild)
        welch = stats.ttest_ind(wild, quiet, equal_var=False).confidence_interval()
        pooled = stats.ttest_ind(wild, quiet).confidence_interval()
        assert found.low is not None
        assert found.low < 0.8 * welch.low < pooled.low

    def test_one_run_against_several_varies_as_they_do(self) -> None:
        found = compare(A, np.array([5.0]))
        half = stats.t.ppf(0.975, 4) * A.std(ddof=1) * math.sqrt(1 + 1 / 5)
        assert found.high == pytest.approx(5.0 - A.mean() + half)

    def test_one_run_each_has_no_interval(self) -> None:
        found = compare(A[:1], B[:1])
        assert found.log == pytest.approx(B[0] - A[0])
        assert (found.low, found.high, found.degrees) == (None, None, 0)


class TestOffsets:
    @given(noise=NOISE, offsets=OFFSETS)
    def test_those_of_places_that_saw_both_sides_change_nothing(self, noise: Floats, offsets: Floats) -> None:
        numbers = [0, 0, 1, 1, 2, 0, 1, 1, 2, 2]
        places = [f"node-{number}" for number in numbers]
        moved = noise + offsets[numbers]
        before, after = (compare(logs[:5], logs[5:], places=places) for logs in (noise, moved))
        assert before.corrected_for == ("place",)
        assert after.log == pytest.approx(before.log, abs=1e-9)
        assert ends(after) == pytest.approx(ends(before), abs=1e-9)

    @given(noise=NOISE, drift=st.lists(st.floats(-0.5, 0.5), min_size=5, max_size=5).map(np.array))
    def test_what_befalls_a_whole_round_changes_nothing(self, noise: Floats, drift: Floats) -> None:
        moved = noise + np.tile(drift, 2)
        before, after = (compare(logs[:5], logs[5:], rounds=[*"abcde"] * 2) for logs in (noise, moved))
        assert ends(after) == pytest.approx(ends(before), abs=1e-9)

    @given(noise=NOISE, slope=st.floats(-0.005, 0.005))
    def test_most_of_what_grows_with_the_temperature_is_corrected(self, noise: Floats, slope: float) -> None:
        start_c = np.array([40.0, 41, 42, 43, 44, 46, 47, 48, 49, 50])
        before, after = (
            compare(logs[:5], logs[5:], start_c=start_c.tolist()) for logs in (noise, noise + slope * start_c)
        )
        assert before.corrected_for == ("start temperature",)
        assert abs(after.log - before.log) <= 0.5 * abs(slope) * 6 + 1e-9
        assert ends(after)[0] <= before.log <= ends(after)[1]

    def test_where_no_place_saw_both_the_interval_allows_for_them(self) -> None:
        found = compare(0.001 * A, 0.001 * B + 0.15, places=["one"] * 5 + ["other"] * 5)
        assert (found.corrected_for, found.places_confounded) == ((), True)
        assert found.low is not None
        assert found.high is not None
        assert found.low < 0
        assert found.high > 0.31

    def test_a_third_side_ties_places_together(self) -> None:
        """A ran on one node, B on another, and both nodes ran C: the offset is known from C."""
        sides, places = [0, 0, 0, 1, 1, 1, 2, 2, 2, 2], ["one"] * 3 + ["other"] * 3 + ["one", "one", "other", "other"]
        offset = np.array([0.08 * (place == "other") for place in places])
        noise = np.array([1, -1, 0.5, -0.5, 1, 0, 0.5, -1, 1, -0.5]) * 1e-3
        found = difference(
            offset + noise + 0.03 * np.array([side == 1 for side in sides]),
            Design(side=sides, place=places, round=[""] * 10, start_c=[None] * 10),
            1,
            0,
            0.95,
        )
        assert found.corrected_for == ("place",)
        assert found.low is not None
        assert found.high is not None
        assert 0.02 < found.low < 0.03 < found.high < 0.04

    def test_sides_that_began_unequally_warm_differ_by_what_that_may_do(self) -> None:
        found = compare(0.001 * A, 0.001 * B, start_c=[40.0] * 5 + [50.0] * 5)
        assert found.corrected_for == ("start temperature",)
        low, high = ends(found)
        assert (low, high) == pytest.approx((found.log - 1.96 * 0.025, found.log + 1.96 * 0.025), rel=0.01)

    def test_a_degree_is_none(self) -> None:
        found = compare(A, B, start_c=[40.0, 41.0] * 5)
        assert (found.corrected_for, found.places_confounded) == ((), False)


def test_what_the_runs_drew_does_not_choose_the_model() -> None:
    start_c: list[float | None] = [40.0, 44.0, 42.0, 47.0, 41.0, 46.0, 49.0, 43.0, 50.0, 48.0]
    rng = np.random.default_rng(0)
    found = [
        compare(logs[:5], logs[5:], start_c=start_c, rounds=[*"abcde"] * 2)
        for logs in rng.normal(0, 0.01, (20, 10)) + rng.normal(0, 0.01, (20, 1)) * np.array(start_c, dtype=float)
    ]
    assert len({(one.corrected_for, one.degrees) for one in found}) == 1


def test_intervals_hold_as_often_as_they_say() -> None:
    """Offsets, drift, unequal spreads and start temperatures at once; 95 % within what 400 draws allow."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        places = rng.integers(3, size=12)
        start_c = rng.normal(45, 4, 12).round()
        spread = np.repeat([0.005, 0.02], (4, 8))
        logs = rng.uniform(-0.1, 0.1, 3)[places] + rng.uniform(0, 0.003) * start_c + rng.normal(0, spread)
        found = compare(logs[:4], logs[4:], places=[str(place) for place in places], start_c=start_c.tolist())
        low, high = ends(found)
        held += low <= 0 <= high
    assert held >= 0.95 * 400 - 2 * math.sqrt(400 * 0.95 * 0.05)
