"""Laws of the energy curve: whatever the curve, windows add up and the bound knows what the counter knows."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measuring import MS, SECOND

from energy_plugins.measure.attribution import Z95, EnergyCurve, RunCurve, SpanEnergy, attribute
from energy_plugins.measure.totals import KindSum


def block(
    start_ns: int, powers_w: list[float], *, cell_ns: int = 20 * MS, measured: bool = True, trust: float = 1.0
) -> EnergyCurve:
    """Return a block of equal cells, each of a power."""
    cells = len(powers_w)
    energy_j = np.array(powers_w) * cell_ns * 1e-9
    return EnergyCurve(
        t_ns=start_ns + np.arange(cells + 1) * cell_ns,
        energy_j=np.concatenate([[0.0], np.cumsum(energy_j)]),
        variance_j2=np.linspace(0, 4.0, cells + 1),
        covered_ns=np.linspace(0.0, cells * cell_ns * measured, cells + 1),
        cut_j2=np.full(cells, 0.01),
        shift_j=np.full(cells, 0.1),
        trust=trust,
        bias=0.02 * (1 - trust),
        start_error_j=0.2 * trust,
        end_error_j=0.2 * trust,
    )


def run_of(*blocks: EnergyCurve) -> RunCurve:
    curve = RunCurve(int(blocks[0].t_ns[0]))
    for one in blocks:
        curve.append(one)
    return curve


def between(curve: RunCurve, *bounds: int) -> SpanEnergy:
    """Return the energy of the windows between neighbouring bounds."""
    times = np.array(bounds, np.int64)
    return attribute(curve.at(times[:-1]), curve.at(times[1:]))


powers = st.lists(st.floats(0, 800), min_size=1, max_size=30)
shares = st.lists(st.floats(0, 1), min_size=2, max_size=8)


def curve_of(blocks: list[tuple[list[float], float]]) -> RunCurve:
    curve = RunCurve(0)
    for powers_w, trust in blocks:
        curve.append(block(curve.settled_ns, powers_w, trust=trust))
    return curve


curves = st.lists(st.tuples(powers, st.floats(0, 1)), min_size=1, max_size=4).map(curve_of)


@given(curves, shares)
def test_adjacent_windows_add_up(curve: RunCurve, cuts: list[float]) -> None:
    bounds = sorted(round(share * curve.settled_ns) for share in cuts)
    parts = between(curve, *bounds)
    whole = between(curve, bounds[0], bounds[-1])
    assert parts.joules.sum() == pytest.approx(whole.joules[0], rel=1e-12, abs=1e-9)
    assert parts.coverage == pytest.approx(np.ones(len(parts.coverage)))
    assert (parts.joules >= -1e-9).all()


@given(curves, shares)
def test_the_order_in_which_points_are_asked_for_changes_nothing(curve: RunCurve, cuts: list[float]) -> None:
    times = np.array([round(share * curve.settled_ns) for share in cuts], np.int64)
    together = curve.at(times)
    assert (together.t_ns == times).all()
    alone = [curve.at(times[row : row + 1]).energy_j[0] for row in range(len(times))]
    assert together.energy_j.tolist() == alone


@given(curves, shares)
def test_every_bound_is_a_number_and_not_negative(curve: RunCurve, cuts: list[float]) -> None:
    bounds = sorted(round(share * curve.settled_ns) for share in cuts)
    bound_j = between(curve, *bounds).error_bound_j
    assert np.isfinite(bound_j).all()
    assert (bound_j >= 0).all()


@given(st.floats(1, 800), st.integers(0, SECOND), st.integers(0, SECOND))
def test_constant_power_gives_power_times_time(power_w: float, start_ns: int, length_ns: int) -> None:
    curve = run_of(block(0, [power_w] * 50), block(SECOND, [power_w] * 50))
    span = between(curve, start_ns, start_ns + length_ns)
    assert span.joules[0] == pytest.approx(power_w * length_ns * 1e-9, abs=1e-6)


def test_a_step_down_is_charged_as_exactly_as_a_step_up() -> None:
    up, down = [200.0] * 25 + [600.0] * 25, [600.0] * 25 + [200.0] * 25
    curve = run_of(block(0, up), block(SECOND, down))
    rising, falling = between(curve, 450 * MS, 550 * MS), between(curve, 1450 * MS, 1550 * MS)
    assert rising.joules[0] == pytest.approx(falling.joules[0])
    assert rising.joules[0] == pytest.approx(40.0)
    assert rising.error_bound_j[0] == pytest.approx(falling.error_bound_j[0])


def test_what_was_not_measured_is_not_a_number() -> None:
    curve = run_of(block(0, [300.0] * 50), block(SECOND, [0.0] * 50, measured=False), block(2 * SECOND, [300.0] * 50))
    lost = between(curve, SECOND, SECOND + SECOND // 2)
    assert np.isnan(lost.joules[0])
    assert np.isnan(lost.error_bound_j[0])
    assert lost.coverage[0] == 0
    partly = between(curve, SECOND // 2, 3 * SECOND // 2)
    assert partly.coverage[0] == pytest.approx(0.5)
    assert partly.joules[0] == pytest.approx(150.0)


def test_a_span_of_no_length_took_nothing() -> None:
    span = between(run_of(block(0, [300.0] * 50)), 333 * MS, 333 * MS)
    assert (span.joules[0], span.coverage[0]) == (0.0, 1.0)


def test_a_whole_block_is_as_exact_as_the_counter_and_its_parts_are_not() -> None:
    curve = run_of(block(0, [300.0] * 100))
    whole = between(curve, 0, 2 * SECOND).error_bound_j[0]
    half = between(curve, 0, SECOND).error_bound_j[0]
    assert whole == pytest.approx(Z95 * np.hypot(0.2, 0.2))
    assert half > 2 * whole


def test_without_a_counter_the_error_grows_with_the_window() -> None:
    curve = run_of(block(0, [300.0] * 100, trust=0.0))
    bounds_j = [between(curve, 0, part * SECOND // 2).error_bound_j[0] for part in (1, 2, 3, 4)]
    assert all(later > earlier for earlier, later in pairwise(bounds_j))
    assert bounds_j[-1] >= Z95 * 0.02 * 600


def test_full_blocks_between_two_points_add_no_error() -> None:
    blocks = [block(number * SECOND, [300.0] * 50) for number in range(10)]
    curve = run_of(*blocks)
    near = between(curve, SECOND // 2, 3 * SECOND // 2).error_bound_j[0]
    far = between(curve, SECOND // 2, 19 * SECOND // 2).error_bound_j[0]
    assert far == pytest.approx(near)


def test_blocks_without_a_counter_between_two_points_do_add() -> None:
    anchored, free = block(0, [300.0] * 50), [block((1 + n) * SECOND, [300.0] * 50, trust=0.0) for n in range(8)]
    curve = run_of(anchored, *free, block(9 * SECOND, [300.0] * 50))
    assert between(curve, 0, 10 * SECOND).error_bound_j[0] > between(curve, 0, 3 * SECOND).error_bound_j[0]


@pytest.mark.parametrize("spans", [1, 3, 12, 90])
@pytest.mark.parametrize("blocks", [1, 2, 3, 9])
def test_a_scale_that_no_counter_confirms_is_off_alike_everywhere(blocks: int, spans: int) -> None:
    free = replace(block(0, [300.0] * 50, trust=0.0), variance_j2=np.zeros(51), cut_j2=np.zeros(50), bias=0.1)
    curve = run_of(*(replace(free, t_ns=free.t_ns + number * SECOND, shift_j=np.zeros(50)) for number in range(blocks)))
    total = KindSum()
    times = np.linspace(0, blocks * SECOND, spans + 1).astype(np.int64)
    total.add(np.diff(times), attribute(curve.at(times[:-1]), curve.at(times[1:])))
    assert total.error_bound_j == pytest.approx(Z95 * 0.1 * 300 * blocks)


def test_forgotten_blocks_leave_the_later_ones_as_they_were() -> None:
    curve = run_of(*(block(number * SECOND, [300.0] * 50) for number in range(5)))
    before = between(curve, 4 * SECOND, 5 * SECOND)
    curve.forget(4 * SECOND + 1)
    after = between(curve, 4 * SECOND, 5 * SECOND)
    assert (after.joules, after.error_bound_j) == (before.joules, before.error_bound_j)
    assert curve.energy_j == pytest.approx(1500)
    curve.forget(10 * SECOND)
    assert curve.started


def test_a_curve_goes_on_from_the_block_before() -> None:
    first = block(0, [300.0] * 50)
    curve = run_of(first, replace(block(SECOND, [100.0] * 50), bias=0.5))
    assert curve.at(np.array([3 * SECOND // 2])).energy_j[0] == pytest.approx(350.0)
    assert curve.settled_ns == 2 * SECOND
