"""The laws of joules from a counter that wraps, is reset, or is read too seldom."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measuring import MS, SECOND
from numpy.typing import NDArray

from energy_plugins.measure.cpu_counter import SET_BACK, WRAPPED, CounterTrack, Scale, Stretch, counted

PACKAGE_UJ, AMD_UJ, DRAM_UJ = 262143328850, 65532610987, 65712999613
"""What kernels show as max_energy_range_uj: units of 61035, 15258 and 15300 nJ."""
PERF = Scale(Fraction("2.3283064365386962890625e-10"))


def rows(*readings: tuple[int, int]) -> NDArray[np.void]:
    """Return readings ``(t_ns, count)`` as the sampler hands them out, each within a bracket of 2 us."""
    wide = [(t_ns - 1000, t_ns + 1000, count) for t_ns, count in readings]
    return np.array(wide, [("before_ns", "i8"), ("after_ns", "i8"), ("count", "u8")])


def shown_uj(units: int, unit_nj: int) -> int:
    """Return what the kernel shows of a 32-bit register."""
    return units % 2**32 * unit_nj // 1000


@pytest.mark.parametrize(
    ("largest_uj", "wraps_at"),
    [
        (PACKAGE_UJ, Fraction(2**32 * 61035, 1000)),
        (AMD_UJ, Fraction(2**32 * 15258, 1000)),
        (DRAM_UJ, Fraction(2**32 * 15300, 1000)),
        (262143999938, Fraction(10**6 * 2**18)),
        (999, Fraction(1000)),
        (0, None),
        (None, None),
    ],
)
def test_the_counter_begins_again_one_unit_after_its_largest_value(
    largest_uj: int | None, wraps_at: Fraction | None
) -> None:
    assert Scale.microjoules(largest_uj) == Scale(Fraction(1, 10**6), wraps_at)


intervals_ns = st.lists(st.integers(MS, 100 * SECOND), min_size=1, max_size=20)


@given(intervals_ns, st.integers(0, 700_000), st.data())
def test_constant_power_gives_power_times_time_in_any_window(
    intervals: list[int], power_mw: int, data: st.DataObject
) -> None:
    times = np.cumsum([0, *intervals]).tolist()
    stretches = [Stretch(a, b, Fraction(power_mw * (b - a), SECOND)) for a, b in pairwise(times)]
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, times[-1])] * 2)))
    total = counted(stretches, start, end)
    assert total.counts == Fraction(power_mw * (end - start), SECOND)
    assert total.covered_ns == end - start


@given(
    st.lists(st.tuples(st.integers(1, SECOND), st.none() | st.integers(0, 10**12)), min_size=1, max_size=20),
    st.data(),
)
def test_adjacent_windows_add_up(pieces: list[tuple[int, int | None]], data: st.DataObject) -> None:
    times = np.cumsum([0, *(length for length, _ in pieces)]).tolist()
    stretches = [
        Stretch(a, b, None if counts is None else Fraction(counts))
        for (a, b), (_, counts) in zip(pairwise(times), pieces, strict=True)
    ]
    a, b, c = sorted(data.draw(st.tuples(*[st.integers(-SECOND, times[-1] + SECOND)] * 3)))
    assert counted(stretches, a, b) + counted(stretches, b, c) == counted(stretches, a, c)


@given(
    st.sampled_from([(PACKAGE_UJ, 61035), (AMD_UJ, 15258), (DRAM_UJ, 15300)]),
    st.integers(0, 2**32 - 1),
    st.lists(st.tuples(st.integers(MS, 30 * SECOND), st.integers(0, 900)), min_size=1, max_size=50),
)
def test_wraps_anywhere_change_nothing(kind: tuple[int, int], register: int, pieces: list[tuple[int, int]]) -> None:
    largest_uj, unit_nj = kind
    t_ns, units = 0, register
    track = CounterTrack(Scale.microjoules(largest_uj), 0)
    track.take(rows((0, shown_uj(units, unit_nj))))
    for length_ns, power_w in pieces:
        t_ns += length_ns
        units += power_w * length_ns // unit_nj
        track.take(rows((t_ns, shown_uj(units, unit_nj))))
    joules, coverage = track.energy_j(t_ns)
    assert joules is not None
    assert joules == pytest.approx((units - register) * unit_nj * 1e-9, abs=1.001e-6)
    assert (coverage, track.faults) == (1.0, {})


@given(intervals_ns, st.lists(st.integers(0, 10**12), max_size=6), st.booleans())
def test_forgetting_and_repeating_change_nothing(intervals: list[int], cuts: list[int], again: bool) -> None:
    readings = [(t_ns, t_ns * 3 // 7) for t_ns in np.cumsum([0, *intervals]).tolist()]
    end_ns = readings[-1][0]
    plain, other = CounterTrack(PERF, 1000), CounterTrack(PERF, 1000)
    plain.take(rows(*readings))
    seen_ns = 0
    for reading in readings:
        other.take(rows(*[reading] * (2 if again else 1)))
        for cut in cuts:
            seen_ns = max(seen_ns, min(cut, reading[0]))
            other.forget(seen_ns)
    assert other.energy_j(end_ns) == plain.energy_j(end_ns)


def test_the_ends_of_a_window_are_interpolated_between_the_readings_around_them() -> None:
    track = CounterTrack(Scale.microjoules(None), 5 * SECOND)
    track.take(rows((4 * SECOND, 0), (6 * SECOND, 20_000_000), (8 * SECOND, 100_000_000), (10 * SECOND, 300_000_000)))
    assert track.energy_j(9 * SECOND) == (10.0 + 80.0 + 100.0, 1.0)
    assert track.energy_j(12 * SECOND) == pytest.approx((10.0 + 80.0 + 200.0, 5 / 7))


def test_nothing_is_known_without_two_readings() -> None:
    track = CounterTrack(PERF, 0)
    assert track.energy_j(SECOND) == (None, 0.0)
    track.take(rows((0, 5)))
    assert track.energy_j(SECOND) == (None, 0.0)
    assert track.energy_j(0) == (None, 0.0)


def test_a_gap_in_which_it_may_have_wrapped_twice_is_not_measured() -> None:
    scale = Scale.microjoules(AMD_UJ)  # 65 kJ: 65 s at 1 kW
    track = CounterTrack(scale, 0)
    track.take(rows((0, 0), (60 * SECOND, 6_000_000_000), (140 * SECOND, 9_000_000_000), (150 * SECOND, 9_500_000_000)))
    assert track.energy_j(150 * SECOND) == pytest.approx((6000.0 + 500.0, 70 / 150))
    assert list(track.faults) == [WRAPPED]


def test_a_long_gap_is_measured_where_one_wrap_more_is_out_of_reach() -> None:
    track = CounterTrack(Scale.microjoules(AMD_UJ), 0)
    track.take(rows((0, 0), (80 * SECOND, 40_000_000_000)))  # 500 W; with a wrap it would be 1.3 kW
    assert track.energy_j(80 * SECOND) == (40_000.0, 1.0)


@pytest.mark.parametrize("scale", [Scale.microjoules(PACKAGE_UJ), Scale.microjoules(None)], ids=["wraps", "endless"])
def test_a_counter_that_is_set_back_loses_that_stretch_alone(scale: Scale) -> None:
    track = CounterTrack(scale, 0)
    track.take(rows((0, 10**9), (SECOND, 10**9 + 10**8), (2 * SECOND, 50), (3 * SECOND, 200_000_050)))
    assert track.energy_j(3 * SECOND) == pytest.approx((300.0, 2 / 3))
    assert list(track.faults) == [SET_BACK]


def test_two_readings_in_quick_succession_are_no_jump() -> None:
    track = CounterTrack(Scale.microjoules(PACKAGE_UJ), 0)
    track.take(rows((0, 0), (2000, 500_000), (SECOND, 100_000_000)))  # a refresh of 0.5 J within 2 us
    assert track.energy_j(SECOND) == (100.0, 1.0)
    assert not track.faults
