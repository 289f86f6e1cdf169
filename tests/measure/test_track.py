"""One GPU's readings on their way to settled joules."""

from __future__ import annotations

import numpy as np
import pytest
from measuring import MS, SECOND, Pieces, counter_rows, energy_j, power_rows, sense
from numpy.typing import NDArray

from energy_plugins.measure.attribution import attribute
from energy_plugins.measure.curve import CurveBuilder
from energy_plugins.measure.power_sensors import SAMPLE_BUFFER
from energy_plugins.measure.response import Segments
from energy_plugins.measure.track import GpuTrack

RESPONSE = SAMPLE_BUFFER.response
WHOLE = Segments(np.array([0, 2**62]), np.array([1]))
START_NS = 100 * SECOND + 40 * MS
NO_COUNTER = counter_rows()
NO_POWER = power_rows(np.empty(0, np.int64), np.empty(0))


class Gpu:
    """What a sampler would have read: samples every 20 ms, the counter's refreshes at full tenths of a second."""

    def __init__(self, pieces: Pieces) -> None:
        self.pieces = pieces

    def samples(self, start_ns: int, end_ns: int) -> NDArray[np.void]:
        t_ns = np.arange(start_ns, end_ns, 20 * MS, dtype=np.int64)
        return power_rows(t_ns, sense(self.pieces, t_ns, RESPONSE))

    def reading(self, t_ns: int, *, edge: bool = False) -> tuple[int, int, float, int]:
        """Return a reading of 2 ms, or one that saw the last refresh before ``t_ns``."""
        refresh_ns = t_ns // (100 * MS) * 100 * MS
        counted_j = 5000 + energy_j(self.pieces, 90 * SECOND, refresh_ns)
        if edge:
            return refresh_ns - MS, refresh_ns + MS, counted_j, 1
        return t_ns, t_ns + 2 * MS, counted_j, 0


def fed(track: GpuTrack, gpu: Gpu, end_ns: int, *, every_s: int = 10, repeat: int = 1) -> None:
    """Give ``track`` a second of samples at a time, and counter readings at both ends and in between."""
    track.take(NO_POWER, counter_rows(*[gpu.reading(START_NS + 110 * MS, edge=True)] * repeat))
    for number in range((end_ns - START_NS) // SECOND + 1):
        now_ns = START_NS + number * SECOND
        readings = [gpu.reading(now_ns + 30 * MS)] * repeat if number and number % every_s == 0 else []
        first_ns = now_ns - SECOND if number else now_ns - 2 * SECOND
        track.take(gpu.samples(first_ns, min(now_ns, end_ns)), counter_rows(*readings))
        track.settle(min(now_ns - SECOND, end_ns), WHOLE)
    late = counter_rows(*[gpu.reading(end_ns + 110 * MS, edge=True)] * repeat)
    track.take(gpu.samples(now_ns, end_ns + 200 * MS), late)
    track.finish(end_ns, WHOLE)


def window(track: GpuTrack, start_ns: int, end_ns: int) -> tuple[float, float, float]:
    span = attribute(track.at(np.array([start_ns])), track.at(np.array([end_ns])))
    return float(span.joules[0]), float(span.error_bound_j[0]), float(span.coverage[0])


def test_a_run_is_as_exact_as_the_counter() -> None:
    gpu, end_ns = Gpu([(0, 300.0), (110 * SECOND, 520.0), (117 * SECOND, 150.0)]), START_NS + 33 * SECOND
    track = GpuTrack(SAMPLE_BUFFER, START_NS)
    fed(track, gpu, end_ns)
    joules, bound_j, coverage = window(track, START_NS, end_ns)
    truth_j = energy_j(gpu.pieces, START_NS, end_ns)
    assert abs(joules - truth_j) <= bound_j
    assert bound_j < 0.002 * truth_j
    assert coverage == 1
    assert track.faults == {}


def test_adjacent_windows_over_several_blocks_add_up() -> None:
    gpu, end_ns = Gpu([(0, 300.0), (110 * SECOND, 520.0)]), START_NS + 33 * SECOND
    track = GpuTrack(SAMPLE_BUFFER, START_NS)
    fed(track, gpu, end_ns)
    bounds = np.linspace(START_NS, end_ns, 100).astype(np.int64)
    points = track.at(bounds)
    assert np.diff(points.energy_j).sum() == pytest.approx(window(track, START_NS, end_ns)[0], rel=1e-12)


def test_repeated_readings_change_nothing() -> None:
    gpu, end_ns = Gpu([(0, 300.0), (110 * SECOND, 520.0)]), START_NS + 25 * SECOND
    once, thrice = GpuTrack(SAMPLE_BUFFER, START_NS), GpuTrack(SAMPLE_BUFFER, START_NS)
    fed(once, gpu, end_ns)
    fed(thrice, gpu, end_ns, repeat=3)
    times = np.linspace(START_NS, end_ns, 50).astype(np.int64)
    assert thrice.at(times).energy_j.tolist() == once.at(times).energy_j.tolist()
    assert window(thrice, START_NS, end_ns) == window(once, START_NS, end_ns)


def test_without_a_counter_samples_alone_are_settled_as_the_run_goes() -> None:
    gpu, track = Gpu([(0, 300.0)]), GpuTrack(SAMPLE_BUFFER, START_NS)
    for second in range(45):
        now_ns = START_NS + second * SECOND
        track.take(gpu.samples(now_ns - SECOND, now_ns), NO_COUNTER)
        track.settle(now_ns - SECOND, WHOLE)
    assert track.curve.settled_ns >= START_NS + 30 * SECOND
    track.finish(START_NS + 43 * SECOND, WHOLE)
    joules, bound_j, coverage = window(track, START_NS, START_NS + 43 * SECOND)
    assert joules == pytest.approx(300 * 43, rel=1e-6)
    assert 0.1 < bound_j / joules < 0.22
    assert coverage == 1


def test_a_counter_that_goes_backwards_is_left_out_and_said() -> None:
    gpu, track, end_ns = Gpu([(0, 300.0)]), GpuTrack(SAMPLE_BUFFER, START_NS), START_NS + 30 * SECOND
    track.take(gpu.samples(START_NS - SECOND, end_ns + 200 * MS), NO_COUNTER)
    readings = [gpu.reading(START_NS + 110 * MS, edge=True)]
    readings += [gpu.reading(START_NS + second * SECOND + 30 * MS) for second in (5, 10, 15, 20, 25)]
    readings = [*readings[:3], *((before, after, joules - 9000, edge) for before, after, joules, edge in readings[3:])]
    track.take(NO_POWER, counter_rows(*readings))
    track.finish(end_ns, WHOLE)
    assert list(track.faults.values()) == [1]
    assert "went backwards" in next(iter(track.faults))
    joules, bound_j, coverage = window(track, START_NS, end_ns)
    assert abs(joules - 9000) <= bound_j
    assert coverage == 1


def test_a_gpu_that_falls_silent_is_missing_from_then_on() -> None:
    gpu, track, lost_ns = Gpu([(0, 300.0)]), GpuTrack(SAMPLE_BUFFER, START_NS), START_NS + 10 * SECOND
    for second in range(60):
        now_ns = START_NS + second * SECOND
        track.take(gpu.samples(now_ns - SECOND, now_ns) if now_ns <= lost_ns else NO_POWER, NO_COUNTER)
        track.settle(now_ns, WHOLE)
    assert track.curve.settled_ns > START_NS + 40 * SECOND
    track.finish(START_NS + 60 * SECOND, WHOLE)
    assert any("no power samples" in text for text in track.faults)
    joules, _, coverage = window(track, lost_ns + 5 * SECOND, START_NS + 60 * SECOND)
    assert np.isnan(joules)
    assert coverage == 0
    joules, _, coverage = window(track, START_NS, lost_ns - SECOND)
    assert joules == pytest.approx(2700, rel=0.01)
    assert coverage == 1


def test_a_gpu_that_never_spoke_is_missing_as_a_whole() -> None:
    track = GpuTrack(SAMPLE_BUFFER, START_NS)
    track.finish(START_NS + SECOND, WHOLE)
    joules, _, coverage = window(track, START_NS, START_NS + SECOND)
    assert np.isnan(joules)
    assert coverage == 0


def test_a_window_shorter_than_a_refresh_is_measured() -> None:
    gpu, track, end_ns = Gpu([(0, 300.0)]), GpuTrack(SAMPLE_BUFFER, START_NS), START_NS + 30 * MS
    after = counter_rows(gpu.reading(START_NS + 110 * MS, edge=True))
    track.take(gpu.samples(START_NS - SECOND, end_ns + 200 * MS), after)
    track.finish(end_ns, WHOLE)
    joules, bound_j, _ = window(track, START_NS, end_ns)
    assert abs(joules - 9) <= bound_j


def test_a_preview_continues_the_settled_curve() -> None:
    gpu, track = Gpu([(0, 300.0)]), GpuTrack(SAMPLE_BUFFER, START_NS)
    track.take(gpu.samples(START_NS - SECOND, START_NS + 5 * SECOND), NO_COUNTER)
    about_j = track.preview(np.array([START_NS + SECOND, START_NS + 4 * SECOND]), WHOLE)
    assert np.diff(about_j)[0] == pytest.approx(900, rel=0.01)
    assert about_j[0] == pytest.approx(300, rel=0.01)


def test_forgetting_keeps_the_memory_of_a_long_run_flat() -> None:
    gpu, track = Gpu([(0, 300.0)]), GpuTrack(SAMPLE_BUFFER, START_NS)
    track.take(NO_POWER, counter_rows(gpu.reading(START_NS + 110 * MS, edge=True)))
    for second in range(1, 300):
        now_ns = START_NS + second * SECOND
        readings = [gpu.reading(now_ns + 30 * MS)] if second % 10 == 0 else []
        track.take(gpu.samples(now_ns - SECOND, now_ns), counter_rows(*readings))
        track.settle(now_ns - SECOND, WHOLE)
        track.forget(track.curve.settled_ns)
    assert len(track.anchors.dated) < 6
    assert isinstance(track.builder, CurveBuilder)
    assert len(track.builder._t_ns) < 50 * 25
    assert len(track.curve._blocks) <= 2
