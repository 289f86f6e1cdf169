"""Samples, work and counter readings of one stretch of time become a piece of the energy curve."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measuring import MS, SECOND, Pieces, energy_j, sense
from numpy.typing import NDArray

from energy_plugins.measure.attribution import EnergyCurve, RunCurve, SpanEnergy, attribute
from energy_plugins.measure.curve import CurveBuilder, Stretch, Sum
from energy_plugins.measure.power_sensors import AVERAGE, INSTANT, QUICK, SAMPLE_BUFFER, PowerSensor
from energy_plugins.measure.response import Segments

RESPONSE = SAMPLE_BUFFER.response
WHOLE = Segments(np.array([0, 2**62]), np.array([1]))
END_NS = 4 * SECOND


def stamps(start_ns: int = -SECOND // 2, end_ns: int = END_NS + SECOND // 2) -> NDArray[np.int64]:
    return np.arange(start_ns, end_ns, 20 * MS, dtype=np.int64)


def builder_of(pieces: Pieces, t_ns: NDArray[np.int64]) -> CurveBuilder:
    builder = CurveBuilder(SAMPLE_BUFFER)
    builder.add(t_ns, sense(pieces, t_ns, RESPONSE))
    return builder


def exact(pieces: Pieces, end_ns: int = END_NS) -> Sum:
    return Sum(energy_j(pieces, 0, end_ns), 0, 1e6, 1e6)


def settled(pieces: Pieces, *, segments: Segments = WHOLE, total: Sum | None = None) -> EnergyCurve:
    return builder_of(pieces, stamps()).settle(Stretch(0, END_NS, segments, total or exact(pieces)))


def of(curve: EnergyCurve, start_ns: int, end_ns: int) -> SpanEnergy:
    run = RunCurve(int(curve.t_ns[0]))
    run.append(curve)
    return attribute(run.at(np.array([start_ns])), run.at(np.array([end_ns])))


@given(st.floats(60, 800), st.integers(0, END_NS), st.integers(0, END_NS))
def test_constant_power_gives_power_times_time(power_w: float, one_ns: int, other_ns: int) -> None:
    start_ns, end_ns = sorted((one_ns, other_ns))
    span = of(settled([(0, power_w)]), start_ns, end_ns)
    assert span.joules[0] == pytest.approx(power_w * (end_ns - start_ns) * 1e-9, rel=1e-9, abs=1e-9)
    assert span.coverage[0] == pytest.approx(1)


@given(st.lists(st.tuples(st.integers(10 * MS, 900 * MS), st.floats(100, 700)), min_size=1, max_size=8))
def test_the_sum_of_a_block_is_the_counters(drawn: list[tuple[int, float]]) -> None:
    edges = np.cumsum([0, *(length_ns for length_ns, _ in drawn[:-1])]).tolist()
    pieces = list(zip(edges, (power_w for _, power_w in drawn), strict=True))
    span = of(settled(pieces), 0, END_NS)
    assert abs(span.joules[0] - energy_j(pieces, 0, END_NS)) <= span.error_bound_j[0]
    assert span.joules[0] == pytest.approx(energy_j(pieces, 0, END_NS), rel=2e-3)


@pytest.mark.parametrize("known", [True, False], ids=["marked", "unmarked"])
def test_a_step_down_is_charged_as_exactly_as_a_step_up(known: bool) -> None:
    errors_j, bounds_j = [], []
    for before_w, after_w in ((200.0, 600.0), (600.0, 200.0)):
        pieces = [(0, before_w), (END_NS // 2, after_w)]
        work = Segments(np.array([0, END_NS // 2, 2**62]), np.array([1, 2])) if known else WHOLE
        curve = settled(pieces, segments=work)
        span = of(curve, END_NS // 2, END_NS // 2 + 300 * MS)
        errors_j.append(abs(span.joules[0] - energy_j(pieces, END_NS // 2, END_NS // 2 + 300 * MS)))
        bounds_j.append(span.error_bound_j[0])
    assert (np.array(errors_j) <= bounds_j).all()
    assert errors_j[0] == pytest.approx(errors_j[1], abs=0.5)
    assert bounds_j[0] == pytest.approx(bounds_j[1], rel=0.25)


def test_what_training_was_doing_sharpens_blurred_samples() -> None:
    lengths = np.random.default_rng(2).integers(10 * MS, 40 * MS, 400)
    edges = np.cumsum(lengths)
    edges = edges[edges < END_NS]
    kinds = np.arange(len(edges)) % 2
    powers_w = np.array([300.0, 520.0])
    pieces = list(zip(edges.tolist(), powers_w[kinds].tolist(), strict=True))
    marked = settled(pieces, segments=Segments(np.append(edges, 2**62), kinds))
    blind = settled(pieces)
    errors = []
    for curve in (marked, blind):
        spans = [(int(a), int(b)) for a, b in zip(edges[10:-2:2], edges[11:-1:2], strict=False)]
        of_low = sum(of(curve, a, b).joules[0] for a, b in spans)
        errors.append(abs(of_low / sum(energy_j(pieces, a, b) for a, b in spans) - 1))
    assert errors[0] < 0.01
    assert errors[1] > 0.1


def test_a_gap_in_the_samples_is_not_covered_but_keeps_the_sum() -> None:
    t_ns = stamps()
    t_ns = t_ns[(t_ns < SECOND) | (t_ns > 2 * SECOND)]
    pieces = [(0, 300.0), (1500 * MS, 500.0)]
    curve = builder_of(pieces, t_ns).settle(Stretch(0, END_NS, WHOLE, exact(pieces)))
    lost = of(curve, 1200 * MS, 1800 * MS)
    assert np.isnan(lost.joules[0])
    assert lost.coverage[0] == 0
    whole = of(curve, 0, END_NS)
    assert whole.joules[0] == pytest.approx(energy_j(pieces, 0, END_NS), rel=5e-3)
    assert whole.coverage[0] == pytest.approx(0.75, abs=0.02)


def test_samples_a_little_late_leave_no_gap() -> None:
    t_ns = stamps()
    t_ns = t_ns[(t_ns < SECOND) | (t_ns > SECOND + SAMPLE_BUFFER.gap_ns - 30 * MS)]
    assert of(builder_of([(0, 300.0)], t_ns).settle(Stretch(0, END_NS, WHOLE, None)), 0, END_NS).coverage[0] == 1


def test_a_block_without_samples_is_missing() -> None:
    nothing = CurveBuilder(SAMPLE_BUFFER)
    assert np.isnan(nothing.last_w)
    assert nothing.horizon_ns == 0
    for total in (None, exact([(0, 300.0)])):
        span = of(nothing.settle(Stretch(0, END_NS, WHOLE, total)), 0, END_NS)
        assert np.isnan(span.joules[0])
        assert span.coverage[0] == 0


def test_without_a_counter_samples_are_integrated_and_the_bound_says_so() -> None:
    pieces = [(0, 400.0)]
    builder = builder_of(pieces, stamps())
    free = of(builder.settle(Stretch(0, END_NS, WHOLE, None)), 0, END_NS)
    anchored = of(settled(pieces), 0, END_NS)
    assert free.joules[0] == pytest.approx(1600, rel=1e-6)
    assert free.error_bound_j[0] == pytest.approx(1.96 * SAMPLE_BUFFER.model.unanchored * 1600, rel=0.05)
    assert anchored.error_bound_j[0] < free.error_bound_j[0] / 10


@pytest.mark.parametrize("factor", [0.0, -1.0, 0.3, 0.75, 1.25, 3.0, 1e6])
def test_an_implausible_counter_is_not_believed(factor: float) -> None:
    pieces = [(0, 400.0)]
    builder = builder_of(pieces, stamps())
    span = of(builder.settle(Stretch(0, END_NS, WHOLE, Sum(1600 * factor, 0, 1e6, 1e6))), 0, END_NS)
    assert span.joules[0] == pytest.approx(1600, rel=1e-6)
    assert span.error_bound_j[0] > 50
    assert builder.scale == 1


@pytest.mark.parametrize("factor", [0.4, 1.25, 2.5])
def test_snapshots_may_miss_most_of_what_the_counter_counts(factor: float) -> None:
    builder = CurveBuilder(INSTANT, 700.0)
    t_ns = np.arange(-SECOND, END_NS + SECOND, 100 * MS, dtype=np.int64)
    builder.add(t_ns, np.full(len(t_ns), 200.0))
    span = of(builder.settle(Stretch(0, END_NS, WHOLE, Sum(800 * factor, 0, 1e6, 1e6))), 0, END_NS)
    assert span.joules[0] == pytest.approx(800 * factor, rel=1e-3)


def test_the_scale_of_the_samples_is_learnt_from_the_counter() -> None:
    pieces = [(0, 400.0)]
    builder = builder_of(pieces, stamps(end_ns=9 * SECOND))
    builder.settle(Stretch(0, END_NS, WHOLE, Sum(1600 * 1.05, 0, 1e6, 1e6)))
    later = of(builder.settle(Stretch(END_NS, 2 * END_NS, WHOLE, None)), END_NS, 2 * END_NS)
    assert later.joules[0] == pytest.approx(1680, rel=2e-3)


def test_a_preview_learns_nothing_and_is_about_right() -> None:
    pieces = [(0, 300.0), (2 * SECOND, 500.0)]
    builder = builder_of(pieces, stamps())
    ahead = builder.preview(Stretch(0, END_NS, WHOLE))
    assert ahead.energy_j[-1] == pytest.approx(1600, rel=0.01)
    again = builder.settle(Stretch(0, END_NS, WHOLE, exact(pieces)))
    assert again.energy_j.tolist() == settled(pieces).energy_j.tolist()


def test_forgetting_keeps_what_the_next_block_needs() -> None:
    pieces = [(0, 300.0), (2 * SECOND + 10 * MS, 500.0)]
    whole, trimmed = builder_of(pieces, stamps()), builder_of(pieces, stamps())
    whole.settle(Stretch(0, 2 * SECOND, WHOLE, None))
    trimmed.settle(Stretch(0, 2 * SECOND, WHOLE, None))
    trimmed.forget(2 * SECOND)
    rest = (2 * SECOND, END_NS, WHOLE, None)
    assert trimmed.settle(Stretch(*rest)).energy_j[-1] == pytest.approx(
        whole.settle(Stretch(*rest)).energy_j[-1], rel=1e-9
    )


def test_zero_watts_are_a_measurement() -> None:
    span = of(settled([(0, 0.0)], total=Sum(0.0, 0, 1e6, 1e6)), SECOND, 2 * SECOND)
    assert span.joules[0] == pytest.approx(0, abs=1e-2)
    assert span.coverage[0] == 1
    assert np.isfinite(span.error_bound_j[0])


@pytest.mark.parametrize("sensor", [SAMPLE_BUFFER, QUICK, INSTANT, AVERAGE])
def test_the_newest_sample_stands_in_for_a_moment_after_it_and_no_longer(sensor: PowerSensor) -> None:
    builder = CurveBuilder(sensor)
    builder.add(t_ns := np.arange(0, 5 * SECOND + 1, 20 * MS, dtype=np.int64), np.full(len(t_ns), 300.0))
    for after_ns, covered in ((0, 1.0), (sensor.extend_ns - 50 * MS, 1.0), (sensor.extend_ns + 50 * MS, 0.0)):
        start_ns = builder.horizon_ns + after_ns
        end_ns = start_ns + 40 * MS
        span = of(builder.preview(Stretch(start_ns, end_ns, WHOLE)), start_ns, end_ns)
        assert span.coverage[0] == covered
        assert np.nan_to_num(span.joules[0]) == pytest.approx(300.0 * 0.04 * covered)


@pytest.mark.parametrize(("power_w", "highest_w"), [(440.0, 450.0), (460.0, 450.0), (500.0, 1000.0), (1200.0, 1200.0)])
def test_a_limit_that_does_not_bind_is_no_bound(power_w: float, highest_w: float) -> None:
    builder = CurveBuilder(AVERAGE, 450.0)
    builder.add(np.arange(0, 30 * SECOND, SECOND // 10), np.full(300, power_w))
    assert builder.settle(Stretch(2 * SECOND, 22 * SECOND, WHOLE)).blind.highest_w == highest_w
