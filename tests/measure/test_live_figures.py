"""Figures of a running measurement, and marks that come in hindsight."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from measuring import POWER_W, Simulated

from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.measure.power_sensors import SAMPLE_BUFFER
from energy_plugins.measure.spans import Kind
from energy_plugins.testing import Constant, GpuLost, NoCounter, NoSampleBuffer, NotSupported, Simulation

BLIND = (
    NoSampleBuffer(),
    NoCounter(),
    NotSupported("nvmlDeviceGetFieldValues"),
    NotSupported("nvmlDeviceGetPowerUsage"),
)
"""What takes all sensors away."""


def step_after_fetch(meter: EnergyMeter, simulation: Simulation, wait_s: float) -> None:
    """Do what a framework does that learns only after a fetch that it led to a step."""
    since_ns = simulation.clock.now_ns()
    meter.expect(since_ns)
    simulation.advance(wait_s)
    until_ns = simulation.clock.now_ns()
    meter.begin(Kind.STEP, at_ns=since_ns)
    meter.begin(Kind.DATA_WAIT, at_ns=since_ns)
    meter.end(Kind.DATA_WAIT, event=False, at_ns=until_ns)
    meter.expect(None)
    simulation.advance(0.5)
    meter.end(Kind.STEP, samples=1)


def test_a_wait_longer_than_a_block_belongs_to_its_step(virtual: Simulation) -> None:
    waits_s = (0.1, 40.0, 0.1, 120.0, 0.1)
    with EnergyMeter() as meter:
        for wait_s in waits_s:
            step_after_fetch(meter, virtual, wait_s)
    report = meter.report()
    assert report.steps["data_wait_j"].tolist() == pytest.approx([POWER_W * wait_s for wait_s in waits_s], rel=0.01)
    assert report.steps["energy_j"].tolist() == pytest.approx([POWER_W * (wait + 0.5) for wait in waits_s], rel=0.01)
    assert (report.steps["coverage"] == 1).all()
    assert sum(kind.energy_j or 0 for kind in report.kinds) == pytest.approx(report.total_j)


def test_who_listens_to_steps_hears_how_long_backward_took(virtual: Simulation) -> None:
    """Of a step with several micro-batches, all of them; nothing of a step whose phases nobody marked."""
    with EnergyMeter() as meter:
        assert meter.run is not None
        heard = meter.run.listen_to_steps()
        for number in range(40):
            with meter.step():
                for _ in range(2 if number % 4 == 0 else 0):
                    with meter.span(Kind.FORWARD):
                        virtual.advance(0.05)
                    with meter.span(Kind.BACKWARD):
                        virtual.advance(0.1)
                virtual.advance(0.2)
        for _ in range(5):
            virtual.advance(1.0)
    backward_s = np.concatenate([batch.backward_s for batch in heard])
    assert len(backward_s) == 40
    assert backward_s[::4] == pytest.approx(0.2, rel=0.05)  # reading the GPU takes virtual time, too
    assert np.isnan(np.delete(backward_s, np.s_[::4])).all()


def test_a_mark_from_forgotten_times_is_not_measured_rather_than_wrong(virtual: Simulation) -> None:
    with EnergyMeter() as meter:
        for _ in range(60):
            with meter.step():
                virtual.advance(1)
        meter.begin("late", at_ns=virtual.clock.now_ns() - 50_000_000_000)
        virtual.advance(1)
        meter.end("late")
    spans = meter.report().spans
    late = spans["kind"] == list(meter.report().span_kinds).index("late")
    # Its beginning was not announced: it counts from the last mark on.
    assert spans["energy_j"][late].tolist() == pytest.approx([POWER_W], rel=0.02)


def test_what_came_before_a_block_is_kept_as_long_as_its_samples_respond_to_it(virtual: Simulation) -> None:
    with EnergyMeter() as meter:
        for _ in range(2000):
            with meter.span("forward"):
                virtual.advance(0.01)
        assert meter.run is not None
        collector = meter.run._collector
        reach_ns = SAMPLE_BUFFER.response.reach_ns
        assert collector.settlement.settled_ns > collector.settlement.start_ns
        assert collector.timeline.edges[0] <= collector.settlement.settled_ns - reach_ns


def test_a_gpu_that_fell_silent_does_not_hold_up_the_others(simulated: Simulated) -> None:
    simulation = simulated([Constant(POWER_W), Constant(POWER_W)], virtual=True, start_s=10)
    simulation.gpus[1].inject(GpuLost(at_s=20))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        meter = EnergyMeter().start()
        meter.latest()
        for number in range(1200):
            with meter.step(samples=1):
                simulation.advance(0.1)
            if number % 300 == 299:
                progress = meter.latest()
                assert progress is not None
                assert POWER_W - 10 < (progress.avg_power_w or 0) < 2 * POWER_W + 10
                assert progress.steps > 250
        assert progress is not None
        assert progress.step_j == pytest.approx(POWER_W * 0.1, rel=0.05)
        meter.stop()


@pytest.mark.parametrize("seconds", [5, 40])
def test_a_gpu_that_tells_nothing_has_no_joules_rather_than_none_drawn(simulated: Simulated, seconds: int) -> None:
    simulation = simulated([Constant(POWER_W), Constant(POWER_W)], virtual=True, start_s=10)
    for fault in BLIND:
        simulation.gpus[1].inject(fault)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with EnergyMeter() as meter, EnergyMeter(devices=[1]) as blind:
            for one in (meter, blind):
                one.latest()
            simulation.advance(seconds)
            progress, drawn_j = meter.latest(), meter.drawn_j()
            assert blind.latest() is None
    assert progress is not None
    known_j, unknown_j = progress.gpu_j.values()
    assert progress.total_j == known_j == pytest.approx(POWER_W * seconds, abs=1.5 * POWER_W)
    assert math.isnan(unknown_j)
    assert drawn_j == pytest.approx(POWER_W * seconds, rel=0.01)


def test_figures_are_at_most_a_second_and_a_half_late(virtual: Simulation) -> None:
    late_s = []
    with EnergyMeter() as meter:
        meter.latest()
        for number in range(3000):
            with meter.step(samples=1):
                virtual.advance(0.01)
            if number > 500:
                progress = meter.latest(peek=True)
                assert progress is not None
                late_s.append(0.01 * (number + 1) - progress.total_j / POWER_W)
    assert max(late_s) <= 1.5


def test_a_peek_leaves_the_means_where_they_began(virtual: Simulation) -> None:
    with EnergyMeter() as meter:
        meter.latest()
        seen = 0
        for number in range(400):
            with meter.step(samples=1):
                virtual.advance(0.05)
            meter.latest(peek=True)
            if number % 100 == 99:
                progress = meter.latest()
                assert progress is not None
                seen += progress.steps
    assert seen > 350


@pytest.mark.parametrize("back_s", [None, 100.0])
def test_they_stay_numbers_when_all_gpus_are_lost(simulated: Simulated, back_s: float | None) -> None:
    simulation = simulated(Constant(POWER_W), virtual=True, start_s=10)
    simulation.gpus[0].inject(GpuLost(at_s=20, back_s=back_s))
    drawn_j = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with EnergyMeter() as meter:
            meter.latest()
            for number in range(400):
                with meter.step(samples=1):
                    simulation.advance(0.5)
                drawn_j.append(meter.drawn_j())
                progress = meter.latest(peek=True)
                if progress is not None and number > 10:
                    assert math.isfinite(progress.total_j)
                    assert all(map(math.isfinite, (progress.spent.step_j, progress.spent.energy_j)))
    assert all(map(math.isfinite, drawn_j))
    assert drawn_j[39] == pytest.approx(20 * POWER_W, rel=0.02)
    # Of a GPU that is lost for long no more is guessed than a little beyond what it told.
    assert max(drawn_j[40:190]) <= 25.5 * POWER_W
    assert min(drawn_j[40:]) >= 19 * POWER_W
    if back_s is not None:
        assert drawn_j[-1] > 100 * POWER_W
