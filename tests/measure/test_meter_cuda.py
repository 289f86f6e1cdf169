"""Marks on the GPU: the host runs ahead, and every joule still goes to the step that the GPU was working on."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from measuring import MS, SECOND, Simulated, lasted_s, until

from energy_plugins.measure import streams
from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.measure.report import Report
from energy_plugins.measure.spans import Kind
from energy_plugins.measure.streams import current_stream
from energy_plugins.testing import H200, Simulation, library

IDLE_W = H200.idle_w
OPS_PER_MS = H200.ops_per_s / 1000


@pytest.fixture
def simulation(simulated: Simulated) -> Simulation:
    return simulated(virtual=True, start_s=10)


class Training:
    """Work queued ahead of the GPU, and when the GPU really came to it."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.gpu = simulation.gpus[0]
        self.intervals_ns: list[tuple[int, int]] = []

    def queued_until(self) -> int:
        return max(int(library.nvml().ep_sim_idle_at_ns(0)), self.simulation.clock.now_ns())

    def work(self, gpu_ms: float, *, host_ms: float = 1.0) -> None:
        """Queue ``gpu_ms`` of work, which takes the host ``host_ms``."""
        begin_ns = self.queued_until()
        self.gpu.launch(ops=gpu_ms * OPS_PER_MS)
        self.intervals_ns.append((begin_ns, self.queued_until()))
        self.simulation.advance(host_ms * 1e-3)

    def true_j(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.array([self.gpu.true_energy_j(*interval) for interval in self.intervals_ns])

    def finish(self) -> None:
        self.gpu.synchronize()
        self.simulation.advance(0.02)


def settle(simulation: Simulation) -> None:
    """Let the reads of the meter's start pass: in virtual time they are the training thread's."""
    simulation.advance(0.2)


def columns_ns(report: Report, start_ns: int) -> tuple[list[int], list[int]]:
    starts, ends = (
        [start_ns + round(seconds * 1e9) for seconds in report.steps[name].tolist()] for name in ("start_s", "end_s")
    )
    return starts, ends


def test_steps_follow_the_gpu_and_not_the_host(simulation: Simulation) -> None:
    training = Training(simulation)
    with EnergyMeter() as meter:
        start_ns = simulation.clock.now_ns()
        settle(simulation)
        for number in range(400):
            with meter.step(samples=8):
                training.work((10, 20)[number % 2], host_ms=5)
            if number % 50 == 49:
                training.gpu.synchronize()
        training.finish()
        end_ns = simulation.clock.now_ns()
    report = meter.report()
    assert report.warnings == ()
    assert report.observer.events == 800
    starts, ends = columns_ns(report, start_ns)
    of_gpu = np.array(training.intervals_ns)
    assert np.abs(np.array(ends) - of_gpu[:, 1]).max() < 0.05 * MS
    assert np.abs(np.array(starts) - of_gpu[:, 0]).max() < 0.05 * MS
    true_j, energy_j = training.true_j(), report.steps["energy_j"]
    for kind in (slice(0, None, 2), slice(1, None, 2)):
        assert energy_j[kind].sum() == pytest.approx(true_j[kind].sum(), rel=0.01)
    assert (np.abs(energy_j - true_j) <= report.steps["error_bound_j"]).mean() > 0.95
    true_total_j = training.gpu.true_energy_j(start_ns, end_ns)
    assert abs((report.total_j or 0) - true_total_j) <= (report.error_bound_j or 0)


def test_one_event_per_step_is_enough(simulation: Simulation) -> None:
    training = Training(simulation)
    with EnergyMeter() as meter:
        start_ns = simulation.clock.now_ns()
        settle(simulation)
        for number in range(300):
            meter.begin(Kind.STEP)
            training.work((12, 24)[number % 3 == 0], host_ms=6)
            meter.end(Kind.STEP, event=True, samples=1)
            if number % 60 == 59:
                training.gpu.synchronize()
        training.finish()
    report = meter.report()
    assert report.observer.events == 300
    starts, ends = columns_ns(report, start_ns)
    assert np.abs(np.array(starts) - [begin for begin, _ in training.intervals_ns]).max() < 0.05 * MS
    assert np.abs(np.array(ends) - [end for _, end in training.intervals_ns]).max() < 0.05 * MS
    assert report.steps["energy_j"].sum() == pytest.approx(training.true_j().sum(), rel=2e-3)


def test_gaps_between_bursts_of_work_are_stall(simulation: Simulation) -> None:
    training, gap_s = Training(simulation), 0.25
    with EnergyMeter() as meter:
        for _ in range(20):
            for _ in range(10):
                with meter.step():
                    training.work(30, host_ms=4)
            training.gpu.synchronize()
            simulation.advance(gap_s)
        training.finish()
    report = meter.report()
    # The last gap has no step after it.
    assert report.stall_j == pytest.approx(19 * gap_s * IDLE_W, rel=0.05)
    stall_j = report.steps["stall_j"]
    assert stall_j[10::10] == pytest.approx(np.full(19, gap_s * IDLE_W), rel=0.12)
    inside = np.delete(stall_j, np.arange(0, 200, 10))
    assert np.abs(inside).max() < 0.1
    assert report.steps["energy_j"].sum() == pytest.approx(training.true_j().sum(), rel=0.01)


def waiting(simulation: Simulation, *, wait_s: float, steps: int = 60) -> tuple[Report, Training]:
    """Train with a loader that takes ``wait_s`` per batch, steps of 50 ms on the GPU, and no synchronisation."""
    training = Training(simulation)
    with EnergyMeter() as meter:
        for _ in range(steps):
            meter.begin(Kind.DATA_WAIT)
            simulation.advance(wait_s)
            meter.end(Kind.DATA_WAIT, event=False)
            with meter.step():
                training.work(50, host_ms=2)
        training.finish()
    return meter.report(), training


def test_a_wait_hidden_by_run_ahead_costs_nothing(simulation: Simulation) -> None:
    report, _ = waiting(simulation, wait_s=0.03)
    assert report.steps["data_wait_j"][5:] == pytest.approx(0, abs=1e-6)
    assert report.steps["stall_j"][5:] == pytest.approx(0, abs=1e-6)


def test_a_wait_that_the_gpu_has_to_share_is_charged_from_where_it_ran_dry(simulation: Simulation) -> None:
    report, _ = waiting(simulation, wait_s=0.15, steps=80)
    # Each round takes 152 ms, of which the GPU works 50 and is idle 102, 2 of them after the wait.
    assert report.steps["data_wait_j"][2:].mean() == pytest.approx(0.100 * IDLE_W, rel=0.1)
    assert report.steps["stall_j"][2:].mean() == pytest.approx(0.100 * IDLE_W, rel=0.1)
    assert (report.data_wait_j or math.nan) <= (report.stall_j or math.nan) * 1.02


def test_the_devices_clock_may_drift(simulation: Simulation) -> None:
    training = Training(simulation)
    with EnergyMeter() as meter:
        start_ns = simulation.clock.now_ns()
        for _ in range(60):
            with meter.step():
                training.work(100, host_ms=1)
            training.gpu.synchronize()
            simulation.advance(2.4)
        training.finish()
    report = meter.report()
    assert report.duration_s > 149  # in which the device's clock gains 450 us
    _, ends = columns_ns(report, start_ns)
    assert np.abs(np.array(ends) - [end for _, end in training.intervals_ns]).max() < 60_000


def test_marks_are_resolved_when_the_gpu_comes_to_them(simulation: Simulation) -> None:
    training, meter = Training(simulation), EnergyMeter()
    with meter:
        meter.latest()
        start_ns = simulation.clock.now_ns()
        for _ in range(4):
            with meter.step():
                training.work(4000, host_ms=1)
        simulation.advance(2.5)
        progress = meter.latest()
        assert progress is not None
        assert progress.steps == 0
        until(simulation, start_ns + round(10.0 * SECOND))
        progress = meter.latest()
        assert progress is not None
        assert progress.steps == 2
        assert progress.step_j == pytest.approx(training.true_j()[:2].mean(), rel=0.02)
        training.finish()
    report = meter.report()
    assert report.steps["energy_j"] == pytest.approx(training.true_j(), rel=0.01)
    assert report.steps["start_s"][1:] == pytest.approx(report.steps["end_s"][:-1], abs=1e-4)


def test_what_the_gpu_has_not_done_when_the_window_closes_is_not_in_it(simulation: Simulation) -> None:
    training, meter = Training(simulation), EnergyMeter()
    meter.start()
    start_ns = simulation.clock.now_ns()
    for _ in range(400):
        with meter.step(samples=1):
            training.work(10, host_ms=3)
    end_ns = simulation.clock.now_ns()
    with pytest.warns(RuntimeWarning, match="marks were still on the GPU"):
        meter.stop()
    report = meter.report()
    assert len(report.warnings) == 1
    started = sum(begin_ns < end_ns for begin_ns, _ in training.intervals_ns)
    assert abs(report.steps.rows - started) <= 2
    assert report.steps["end_s"].max() <= report.duration_s
    assert (report.steps["energy_j"] > 0).all()
    true_j = training.gpu.true_energy_j(start_ns, end_ns)
    assert abs((report.total_j or 0) - true_j) <= 2 * (report.error_bound_j or 0)
    assert sum(kind.energy_j or 0 for kind in report.kinds) == pytest.approx(report.total_j)


def test_work_on_the_way_to_a_captured_graph_marks_host_times(simulation: Simulation) -> None:
    with EnergyMeter() as meter:
        simulation.advance(0.5)
        simulation.capturing(1)
        try:
            with meter.step():
                simulation.advance(0.5)
        finally:
            broken = simulation.capturing(0)
        with meter.step():
            simulation.advance(0.5)
    assert broken == 1  # the capture went on as it was
    report = meter.report()
    assert report.observer.events == 2
    assert np.diff([report.steps["start_s"], report.steps["end_s"]], axis=0)[0] == pytest.approx([0.5, 0.5], rel=0.01)


@pytest.mark.parametrize("cuda", [True, False])
def test_without_a_context_marks_are_host_times(simulated: Simulated, cuda: bool) -> None:
    simulation = simulated(virtual=True, start_s=10, cuda=cuda)
    with EnergyMeter() as meter:
        for _ in range(30):
            with meter.step():
                simulation.advance(0.1)
    report = meter.report()
    assert report.observer.events == (60 if cuda else 0)
    assert report.steps["energy_j"] == pytest.approx(120 * lasted_s(report.steps), rel=0.03)


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "public"])
def test_events_go_to_the_stream_that_torch_uses(monkeypatch: pytest.MonkeyPatch, raw: bool) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert current_stream() == 0
    monkeypatch.setattr(streams, "_query", [])
    calls: dict[str, Callable[..., int]] = {
        "_cuda_getCurrentRawStream": lambda device: 0xA00 + device,
        "_cuda_getDevice": lambda: 5,
    }
    cuda = SimpleNamespace(
        is_initialized=lambda: False,
        current_stream=lambda: SimpleNamespace(cuda_stream=0xA05),
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setitem(sys.modules, "torch._C", SimpleNamespace(**calls if raw else {}))
    assert current_stream() == 0
    cuda.is_initialized = lambda: True
    assert current_stream() == 0xA05
