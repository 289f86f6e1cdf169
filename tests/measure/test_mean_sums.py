"""Means over a second that stand in for an energy counter: the sums they make, and a GPU measured with them."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measuring import MS, SECOND, Pieces, counter_rows, energy_j, power_rows
from numpy.typing import NDArray

from energy_plugins.measure.attribution import attribute
from energy_plugins.measure.counter import Anchor
from energy_plugins.measure.mean_sums import MeanSums
from energy_plugins.measure.power_sensors import AVERAGE, INSTANT, PowerSensor
from energy_plugins.measure.response import Segments
from energy_plugins.measure.track import GpuTrack

START_NS = 100 * SECOND
HIGHEST_W = 700.0
WHOLE = Segments(np.array([0, 2**62]), np.array([1]))
NO_COUNTER = counter_rows()

loads = st.lists(
    st.tuples(st.integers(START_NS - SECOND, START_NS + 10 * SECOND), st.floats(0, HIGHEST_W)), min_size=1, max_size=40
).map(sorted)


def grid(end_ns: int, phase_ns: int = 0) -> NDArray[np.int64]:
    """Return refreshes every 100 ms, from the last one before the start on."""
    return np.arange(START_NS - 100 * MS + phase_ns, end_ns, 100 * MS, dtype=np.int64)


def averaged(pieces: Pieces, t_ns: NDArray[np.int64], window_ns: int = SECOND) -> NDArray[np.void]:
    """Return the means over a window up to each of ``t_ns``."""
    power_w = [energy_j(pieces, now_ns - window_ns, now_ns) / (window_ns * 1e-9) for now_ns in t_ns.tolist()]
    return power_rows(t_ns, np.array(power_w))


def off_j(pieces: Pieces, anchors: list[Anchor]) -> float:
    """Return how far differences of neighbouring anchors are from the truth, at most."""
    return max(abs(b.energy_j - a.energy_j - energy_j(pieces, a.t_ns, b.t_ns)) for a, b in pairwise(anchors))


def test_a_constant_power_gives_p_times_t() -> None:
    anchors = MeanSums(START_NS).take(averaged([(0, 300.0)], grid(START_NS + 5 * SECOND + MS)))
    assert [anchor.t_ns - START_NS for anchor in anchors] == [second * SECOND for second in range(6)]
    assert [anchor.energy_j for anchor in anchors] == pytest.approx([300.0 * second for second in range(6)])


@given(loads)
def test_on_refreshes_the_sums_of_any_load_are_exact(pieces: Pieces) -> None:
    anchors = MeanSums(START_NS).take(averaged(pieces, grid(START_NS + 10 * SECOND)))
    assert len(anchors) == 10
    assert off_j(pieces, anchors) < 1e-6


@given(loads, st.integers(0, 99))
def test_between_refreshes_the_error_does_not_grow(pieces: Pieces, phase_ms: int) -> None:
    anchors = MeanSums(START_NS).take(averaged(pieces, grid(START_NS + 10 * SECOND, phase_ms * MS)))
    assert len(anchors) in (10, 11)
    for anchor in anchors:
        # At each end the energy is interpolated over 100 ms: at worst it is off by a quarter of that.
        assert abs(anchor.energy_j - energy_j(pieces, START_NS, anchor.t_ns)) <= 2 * 0.025 * HIGHEST_W + 1e-6


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_batches_change_nothing(sizes: list[int]) -> None:
    means = averaged([(0, 300.0), (START_NS + 2500 * MS, 120.0)], grid(START_NS + 6 * SECOND, 33 * MS))
    once, bit_by_bit = MeanSums(START_NS), MeanSums(START_NS)
    cuts = np.cumsum(sizes)
    parts = [anchor for batch in np.split(means, cuts[cuts < len(means)]) for anchor in bit_by_bit.take(batch)]
    assert parts == once.take(means)


def test_a_second_that_was_missed_ends_a_count() -> None:
    pieces = [(0, 300.0), (START_NS + 3700 * MS, 600.0)]
    t_ns = grid(START_NS + 9 * SECOND)
    heard = (t_ns < START_NS + 3300 * MS) | (t_ns > START_NS + 4450 * MS)
    anchors = MeanSums(START_NS).take(averaged(pieces, t_ns[heard]))
    counts = [[anchor for anchor in anchors if anchor.count == count] for count in (0, 1)]
    assert [anchor.t_ns - START_NS for anchor in counts[0]] == [0, SECOND, 2 * SECOND, 3 * SECOND]
    assert [anchor.t_ns - START_NS for anchor in counts[1]] == [(4500 + 1000 * k) * MS for k in range(5)]
    assert max(off_j(pieces, count) for count in counts) < 1e-6


def test_refreshes_missed_between_two_anchors_do_not_matter() -> None:
    t_ns = grid(START_NS + 5 * SECOND)
    heard = (t_ns < START_NS + 2200 * MS) | (t_ns > START_NS + 2700 * MS)
    means = averaged([(0, 300.0), (START_NS + 2500 * MS, 120.0)], t_ns)
    assert MeanSums(START_NS).take(means[heard]) == MeanSums(START_NS).take(means)


def test_a_gpu_that_speaks_late_is_counted_from_then_on() -> None:
    t_ns = grid(START_NS + 5 * SECOND)
    anchors = MeanSums(START_NS).take(averaged([(0, 300.0)], t_ns[t_ns >= START_NS + 1500 * MS]))
    assert [anchor.t_ns - START_NS for anchor in anchors] == [1500 * MS, 2500 * MS, 3500 * MS, 4500 * MS]


def test_without_samples_there_are_no_sums() -> None:
    assert MeanSums(START_NS).take(averaged([(0, 300.0)], grid(START_NS)[:0])) == []


def followed(shape: PowerSensor, pieces: Pieces, end_ns: int, silent_ms: tuple[int, int] = (0, 0)) -> GpuTrack:
    """Return the settled track of a GPU without a counter; no means arrive in ``silent_ms`` of the window."""
    track = GpuTrack(shape, START_NS, HIGHEST_W, mean=AVERAGE)
    t_ns = grid(end_ns + 250 * MS, 30 * MS)
    since_ns, until_ns = (START_NS + ms * MS for ms in silent_ms)
    means = averaged(pieces, t_ns[(t_ns < since_ns) | (t_ns >= until_ns)])
    if shape is AVERAGE:
        track.take(means, NO_COUNTER)
    else:
        track.take(averaged(pieces, t_ns, 25 * MS), NO_COUNTER)
        track.take_means(means)
    track.finish(end_ns, WHOLE)
    return track


def window(track: GpuTrack, start_ns: int, end_ns: int) -> tuple[float, float]:
    span = attribute(track.at(np.array([start_ns])), track.at(np.array([end_ns])))
    return float(span.joules[0]), float(span.error_bound_j[0])


def square(period_ms: int, phase_ms: int = 0, low_w: float = 100.0, high_w: float = 700.0) -> Pieces:
    edges = range(START_NS - 2 * SECOND + phase_ms * MS, START_NS + 20 * SECOND, period_ms * MS // 2)
    return [(edge_ns, high_w if number % 2 else low_w) for number, edge_ns in enumerate(edges)]


@pytest.mark.parametrize("period_ms", [10, 50, 100, 137, 200, 250, 500, 1000, 2000])
@pytest.mark.parametrize("length_ms", [6000, 7340, 8000, 8990])
def test_what_a_snapshot_takes_for_another_load_is_summed(period_ms: int, length_ms: int) -> None:
    pieces, end_ns = square(period_ms), START_NS + length_ms * MS
    joules, bound_j = window(followed(INSTANT, pieces, end_ns), START_NS, end_ns)
    truth_j = energy_j(pieces, START_NS, end_ns)
    assert abs(joules - truth_j) <= min(bound_j, 0.02 * truth_j)
    assert bound_j < 0.12 * truth_j


def test_the_sum_of_a_steady_load_has_a_bound_of_about_a_per_cent() -> None:
    end_ns = START_NS + 60 * SECOND + 340 * MS
    joules, bound_j = window(followed(INSTANT, [(0, 300.0)], end_ns), START_NS, end_ns)
    assert joules == pytest.approx(300 * 60.34, rel=1e-6)
    assert 0.01 * joules < bound_j < 0.013 * joules


def test_the_error_that_all_sums_share_does_not_average_out() -> None:
    end_ns = START_NS + 60 * SECOND
    track = followed(INSTANT, [(0, 300.0)], end_ns)
    bounds = np.arange(START_NS, end_ns + 1, SECOND)
    seconds = attribute(track.at(bounds[:-1]), track.at(bounds[1:]))
    assert seconds.shift_j.sum() >= 0.0051 * 300 * 60
    assert (seconds.error_bound_j >= 0.01 * seconds.joules).all()


def test_a_missed_second_is_left_to_the_shape() -> None:
    pieces = [(0, 300.0), (START_NS + 3700 * MS, 600.0)]
    end_ns = START_NS + 12 * SECOND
    whole = followed(INSTANT, pieces, end_ns)
    broken = followed(INSTANT, pieces, end_ns, (3200, 5900))
    truth_j = energy_j(pieces, START_NS, end_ns)
    joules, bound_j = window(broken, START_NS, end_ns)
    assert abs(joules - truth_j) <= bound_j
    assert joules == pytest.approx(truth_j, rel=0.02)
    assert bound_j > 2 * window(whole, START_NS, end_ns)[1]


def test_means_that_never_come_leave_the_shape() -> None:
    end_ns = START_NS + 70 * SECOND
    joules, bound_j = window(followed(INSTANT, [(0, 300.0)], end_ns, (-200, 80_000)), START_NS, end_ns)
    assert joules == pytest.approx(300 * 70, rel=1e-6)
    assert bound_j > 0.5 * joules


@pytest.mark.parametrize("length_ms", [300, 990, 1010, 1900])
def test_windows_of_about_a_second(length_ms: int) -> None:
    pieces, end_ns = square(100), START_NS + length_ms * MS
    joules, bound_j = window(followed(INSTANT, pieces, end_ns), START_NS, end_ns)
    assert abs(joules - energy_j(pieces, START_NS, end_ns)) <= bound_j


def test_means_alone_forget_what_was_before_the_window() -> None:
    pieces, end_ns = [(0, 650.0), (START_NS - 300 * MS, 25.0)], START_NS + 8 * SECOND
    joules, bound_j = window(followed(AVERAGE, pieces, end_ns), START_NS, end_ns)
    truth_j = energy_j(pieces, START_NS, end_ns)
    assert abs(joules - truth_j) <= min(bound_j, 0.03 * truth_j)


def test_the_bound_of_means_alone_knows_of_a_wave_that_they_do_not_show() -> None:
    held = []
    for phase_ms, length_ms in product(range(0, 1000, 130), range(6000, 7000, 130)):
        pieces, end_ns = square(1000, phase_ms), START_NS + length_ms * MS
        joules, bound_j = window(followed(AVERAGE, pieces, end_ns), START_NS, end_ns)
        held.append(abs(joules - energy_j(pieces, START_NS, end_ns)) <= bound_j)
    assert np.mean(held) >= 0.95
