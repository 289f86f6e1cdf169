"""The estimate of what steps draw without filling the GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measuring import SECOND, Simulated

from energy_plugins.measure.attribution import Drawn
from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.measure.report import Report
from energy_plugins.measure.underfilled import FillSum, Underfilled, _share, add_up
from energy_plugins.testing import Constant, Simulation

_NONE = np.empty(0, [("start_ns", "i8"), ("end_ns", "i8"), ("sm", "f8")])
BIG, SMALL = 3.2e13, 3.2e9
"""Operations of a step: 40 ms that fill the GPU, and 40 ms of launching next to nothing."""


@pytest.fixture
def idle(simulated: Simulated) -> Simulation:
    return simulated(Constant(125.0), virtual=True, start_s=10)


def train(simulation: Simulation, ops: float, *, steps: int = 150, rest_s: float = 0.0, activity: bool) -> EnergyMeter:
    gpu = simulation.gpus[0]
    meter = EnergyMeter(activity=activity).start()
    for _ in range(steps):
        with meter.step():
            begun_ns = simulation.clock.now_ns()
            gpu.launch(ops=ops, wait=True)
            simulation.advance(max(0.0, 0.04 - (simulation.clock.now_ns() - begun_ns) * 1e-9))
        simulation.advance(rest_s)
    return meter


def ended(meter: EnergyMeter) -> Report:
    meter.stop()
    return meter.report()


@pytest.mark.parametrize("activity", [True, False])
def test_small_batches_are_underfilled_and_big_ones_are_not(idle: Simulation, activity: bool) -> None:
    small = ended(train(idle, SMALL, activity=activity))
    big = ended(train(idle, BIG, rest_s=0.2, activity=activity))
    assert small.underfilled_j == pytest.approx(float(small.steps["energy_j"].sum()), rel=0.02)
    assert big.underfilled_j is not None
    if not activity:
        assert big.underfilled_j < 0.03 * float(big.steps["energy_j"].sum())
        assert "lowest power of the run as idle power" in big.underfilled_how
    else:
        assert small.underfilled_how == "SM activity below 50 %"
    assert "underfilled" in str(small)
    assert "underfilled_j" not in small.missing


def test_big_batches_without_a_pause_are_filled_by_their_activity(idle: Simulation) -> None:
    report = ended(train(idle, BIG, activity=True))
    assert report.underfilled_j == pytest.approx(0.0, abs=0.02 * (report.total_j or 0))


def test_a_gpu_never_seen_idle_needs_a_baseline(idle: Simulation) -> None:
    idle.gpus[0].launch(ops=20 * BIG)  # what samples still respond to when the window opens
    idle.advance(0.5)
    meter = train(idle, BIG, steps=300, activity=False)
    run = meter.run
    assert run is not None
    report = ended(meter)
    assert report.underfilled_j is None
    assert "needs the idle power" in report.missing["underfilled_j"]
    assert report.underfilled_how == ""
    with_baseline = run._collector.lanes.report(report.span_kinds, {idle.gpus[0].uuid: 125.0}).underfilled
    assert with_baseline.energy_j == pytest.approx(0.0, abs=0.03 * (report.total_j or 0))
    assert "measured idle power" in with_baseline.how


def test_without_steps_there_is_nothing_to_fill(idle: Simulation) -> None:
    with EnergyMeter() as meter:
        idle.advance(5)
    assert meter.report().underfilled_j is None
    assert meter.report().missing["underfilled_j"] == "no steps were marked"


def test_stalls_are_another_waste(idle: Simulation) -> None:
    report = ended(train(idle, SMALL, rest_s=0.16, activity=False))
    assert report.stall_j is not None
    assert report.underfilled_j is not None
    assert report.stall_j == pytest.approx(125 * 149 * 0.16, rel=0.02)
    assert report.underfilled_j == pytest.approx(125 * 150 * 0.04, rel=0.05)


def test_a_step_longer_than_a_block_counts_once(idle: Simulation) -> None:
    with EnergyMeter() as meter:
        for _ in range(2):
            with meter.step():
                idle.advance(50)
    report = meter.report()
    assert report.underfilled_j == pytest.approx(float(report.steps["energy_j"].sum()), rel=1e-3)


# Its arithmetic

intervals = st.lists(
    st.tuples(st.integers(0, 100), st.integers(0, 60)).map(lambda pair: (pair[0], pair[0] + pair[1])), max_size=8
)


@given(working=intervals)
def test_overlapping_intervals_count_once(working: list[tuple[int, int]]) -> None:
    t_ns = np.arange(0, 161, dtype=np.int64)
    covered = np.zeros(160)
    for start, end in working:
        covered[start:end] = 1
    assert _share(t_ns, working).tolist() == covered.tolist()


powers = st.lists(st.floats(60, 1500), min_size=1, max_size=20)


def filled(powers_w: list[float], readings: np.ndarray[Any, np.dtype[np.void]] = _NONE) -> FillSum:
    """Return a second at each power, all of it inside steps."""
    t_ns = np.arange(len(powers_w) + 1) * SECOND
    fill = FillSum()
    fill.see(np.array(powers_w))
    fill.add(Drawn(t_ns, np.array(powers_w), np.ones(len(powers_w), bool)), [(0, int(t_ns[-1]))], readings)
    return fill


@given(powers_w=powers, idle_w=st.floats(50, 150))
def test_the_estimate_is_what_lies_below_the_threshold(powers_w: list[float], idle_w: float) -> None:
    estimate = filled(powers_w).estimate(idle_w, 700.0).energy_j
    assert estimate is not None
    threshold_w = idle_w + 0.25 * (700 - idle_w)
    surely = sum(power_w for power_w in powers_w if power_w < threshold_w - 4)
    perhaps = sum(power_w for power_w in powers_w if power_w < threshold_w + 4)
    assert surely - 1e-6 <= estimate <= perhaps + 1e-6


def test_activity_decides_only_where_it_was_seen() -> None:
    low = np.array([(0, 5 * SECOND, 0.1), (5 * SECOND, 10 * SECOND, 0.9)], _NONE.dtype)
    assert filled([600.0] * 10, low).estimate(None, None) == Underfilled(3000.0, "SM activity below 50 %")
    half_seen = filled([600.0] * 10, low[:1]).estimate(100.0, 700.0)
    assert half_seen.energy_j == 0.0
    assert "idle" in half_seen.how
    unknown = low.copy()
    unknown["sm"] = np.nan
    assert filled([600.0] * 10, unknown).estimate(None, None).energy_j is None


def test_what_no_sample_covered_is_left_out() -> None:
    fill = FillSum()
    t_ns = np.array([0, 1, 2]) * SECOND
    fill.add(Drawn(t_ns, np.array([130.0, 130.0]), np.array([True, False])), [(0, 2 * SECOND)], _NONE)
    assert fill.estimate(125.0, 700.0).energy_j == pytest.approx(130.0)


def test_one_gpu_without_an_estimate_leaves_none() -> None:
    known, unknown = Underfilled(5.0, "a"), Underfilled(None, why="no limit")
    assert add_up([known, known]) == Underfilled(10.0, "a")
    assert add_up([known, Underfilled(1.0, "b")]) == Underfilled(6.0, "a / b")
    assert add_up([known, unknown]) == Underfilled(None, why="no limit")
    assert add_up([]).energy_j is None
