"""The bindings, and the native core through them, against the simulated drivers. csrc/tests has the finer points."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from energy_plugins import _native
from energy_plugins.errors import EnergyError, LibraryError, NvmlError
from energy_plugins.testing import Constant, SimulatedDevice, Simulation, simulated_gpus
from energy_plugins.testing.faults import (
    CounterReset,
    GpuLost,
    Hang,
    MissingSymbol,
    NoCounter,
    NoPermission,
    WallClockStep,
)

Simulate = Callable[..., Simulation]
SECOND = 1_000_000_000


def sampler_of(
    simulation: Simulation, *, marks: _native.MarkLog | None = None, drain_period_ns: int = SECOND
) -> _native.Sampler:
    return _native.Sampler(
        _native.Nvml(simulation.nvml_path),
        [gpu.uuid for gpu in simulation.gpus],
        _native.Clock.simulated(simulation.nvml_path),
        marks=marks,
        drain_period_ns=drain_period_ns,
    )


def thread_names() -> list[str]:
    return [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]


def started(simulation: Simulation, *, marks: _native.MarkLog | None = None) -> _native.Sampler:
    """Start a sampler that virtual time ticks."""
    sampler = sampler_of(simulation, marks=marks)
    sampler.start(threaded=False)
    simulation.clock.attach(sampler.tick)
    return sampler


def test_a_library_that_is_not_there_says_what_to_do() -> None:
    with pytest.raises(LibraryError, match=r"no-such-library\.so.*ENERGY_NVML_LIBRARY") as caught:
        _native.Nvml("no-such-library.so")
    assert isinstance(caught.value, OSError)
    with pytest.raises(LibraryError, match="ENERGY_CUDA_LIBRARY"):
        _native.Cuda("no-such-library.so")


def test_a_real_library_has_no_simulated_clock() -> None:
    with pytest.raises(LibraryError, match="not a simulated NVML library"):
        _native.Clock.simulated("libm.so.6")


def test_nvml_errors_carry_the_call_and_the_code(simulated: Simulate) -> None:
    nvml = _native.Nvml(simulated().nvml_path)
    with pytest.raises(NvmlError, match=r"nvmlDeviceGetHandleByUUID: .* \(6\)") as caught:
        nvml.probe("GPU-00000000-0000-0000-0000-000000000000")
    assert (caught.value.call, caught.value.code) == ("nvmlDeviceGetHandleByUUID", 6)
    assert isinstance(caught.value, EnergyError)
    assert isinstance(caught.value, RuntimeError)
    assert _native.NvmlError is NvmlError
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own
    assert (str(copy), copy.call, copy.code) == (str(caught.value), caught.value.call, caught.value.code)


def test_the_monotonic_clock_is_pythons() -> None:
    clock = _native.Clock.monotonic()
    before = time.monotonic_ns()
    now = clock.now_ns()
    assert before <= now <= time.monotonic_ns()
    assert abs(clock.wall_ns() - time.time_ns()) < SECOND


def test_probe_tells_what_is_missing_and_why(simulated: Simulate) -> None:
    simulation = simulated(
        faults=[NoCounter(), MissingSymbol("nvmlDeviceGetSamples"), NoPermission("nvmlDeviceGetPowerUsage")]
    )
    found = _native.Nvml(simulation.nvml_path).probe(simulation.gpus[0].uuid)
    assert not any((found.energy_counter, found.power_samples, found.power_usage))
    assert {name: reason[-4:] for name, reason in found.reasons.items()} == {
        "energy_counter": " (3)",
        "power_samples": "(13)",
        "power_usage": " (4)",
    }


def test_probe_of_a_whole_gpu_misses_nothing(simulated: Simulate) -> None:
    simulation = simulated()
    nvml = _native.Nvml(simulation.nvml_path)
    found = nvml.probe(simulation.gpus[0].uuid)
    assert found.energy_counter
    assert found.power_samples
    assert found.power_usage
    assert found.reasons == {}
    assert nvml.simulated
    assert nvml.path == simulation.nvml_path


def test_cuda_lists_devices_once_something_has_initialised_it(simulated: Simulate) -> None:
    simulation = simulated(count=2)
    assert _native.Cuda(simulation.cuda_path).device_uuids() == [gpu.uuid for gpu in simulation.gpus]


def test_cuda_lists_nothing_before_that(simulated: Simulate) -> None:
    assert _native.Cuda(simulated(cuda=False).cuda_path).device_uuids() == []


def test_rows_are_fresh_arrays_of_the_agreed_types(simulated: Simulate) -> None:
    simulation = simulated(Constant(300), virtual=True, start_s=10)
    sampler = started(simulation)
    simulation.advance(2)
    power, counter = sampler.power(0), sampler.counter(0)
    assert [(name, str(power.dtype[name])) for name in power.dtype.names or ()] == [
        ("t_ns", "int64"),
        ("power_w", "float64"),
    ]
    assert [(name, str(counter.dtype[name])) for name in counter.dtype.names or ()] == [
        ("before_ns", "int64"),
        ("after_ns", "int64"),
        ("energy_j", "float64"),
        ("edge", "uint8"),
    ]
    assert [(name, str(sampler.state(0).dtype[name])) for name in sampler.state(0).dtype.names or ()] == [
        ("t_ns", "int64"),
        ("sm_clock_mhz", "float64"),
        ("temperature_c", "float64"),
        ("enforced_limit_w", "float64"),
        ("requested_limit_w", "float64"),
        ("utilisation", "float64"),
        ("clock_reasons", "int64"),
    ]
    assert sampler.activity(0).dtype.names == (
        "start_ns",
        "end_ns",
        "sm",
        "occupancy",
        "tensor",
        "dram",
        "nvlink_rx_bytes_per_s",
        "nvlink_tx_bytes_per_s",
    )
    assert power.flags.owndata
    assert power.flags.writeable
    assert len(sampler.power(0)) == 0
    with pytest.raises(IndexError):
        sampler.power(1)


def test_counters_of_the_cpu_need_neither_devices_nor_nvml(tmp_path: Path) -> None:
    counter = tmp_path / "energy_uj"
    counter.write_text("262143328850\n")
    clock = _native.Clock.monotonic()
    sampler = _native.Sampler(None, [], clock, cpu=[_native.RaplCounter(str(counter))])
    sampler.start(threaded=False)
    rows = sampler.cpu(0)
    assert [(name, str(rows.dtype[name])) for name in rows.dtype.names or ()] == [
        ("before_ns", "int64"),
        ("after_ns", "int64"),
        ("count", "uint64"),
    ]
    assert rows["count"].tolist() == [262143328850]
    assert rows["before_ns"][0] <= rows["after_ns"][0] <= clock.now_ns()
    with pytest.raises(IndexError):
        sampler.cpu(1)
    with pytest.raises(ValueError, match="need an NVML library"):
        _native.Sampler(None, ["GPU-a"], clock)


def test_samples_and_counter_agree_with_the_load(simulated: Simulate) -> None:
    simulation = simulated([Constant(300), Constant(500)], virtual=True, start_s=10)
    sampler = started(simulation)
    simulation.advance(60)
    for device, watts in enumerate((300, 500)):
        power, counter = sampler.power(device), sampler.counter(device)
        assert np.all(np.diff(power["t_ns"]) > 0)
        assert power["power_w"].mean() == pytest.approx(watts, rel=1e-3)
        # Each joule is bracketed: two readings give the mean power between their instants, within the brackets and one
        # refresh of the counter.
        joules = np.diff(counter["energy_j"][[0, -1]])[0]
        seconds = np.diff(counter["after_ns"][[0, -1]])[0] / SECOND
        assert joules == pytest.approx(watts * seconds, abs=watts * 0.13)
        assert counter["edge"].sum() == 1
    stats = sampler.stats()
    assert stats.drains == pytest.approx(60, abs=2)
    assert stats.dropped == stats.lost_samples == stats.late_ticks == 0
    assert 0 < stats.thread_cpu_s < 5
    assert stats.driver_call_s > 0
    assert sampler.take_errors() == []


def test_a_search_brackets_the_refresh_with_few_reads() -> None:
    reads, narrow = [], 0
    for seed in range(60):
        with simulated_gpus(Constant(500), virtual=True, start_s=10, seed=seed) as simulation:
            gpu = simulation.gpus[0]
            gpu.inject(CounterReset())  # what the counter shows is then the energy between here and its refresh
            reset_ns = simulation.clock.now_ns()
            simulation.advance(0.2)
            sampler = started(simulation)
            simulation.advance(1.5)
            assert not sampler.edge_pending()
            *on_the_way, edge = sampler.counter(0)
            assert edge["edge"] == 1
            assert on_the_way
            assert not any(reading["edge"] for reading in on_the_way)
            below, above = (gpu.true_energy_j(reset_ns, int(edge[name])) for name in ("before_ns", "after_ns"))
            assert below - 1e-3 <= edge["energy_j"] <= above + 1e-3
            narrow += int(edge["after_ns"] - edge["before_ns"] <= 10_000_000)
            reads.append(sampler.stats().counter_reads)
            assert sampler.take_errors() == []
    assert narrow > 45
    assert np.median(reads) <= 7
    assert max(reads) <= 20


def test_searches_of_several_devices_interleave(simulated: Simulate) -> None:
    simulation = simulated(Constant(300), count=4, virtual=True, start_s=10)
    sampler = started(simulation)
    simulation.advance(1.5)
    assert not sampler.edge_pending()
    for device in range(4):
        edges = sampler.counter(device)["edge"]
        assert (edges.sum(), edges[-1]) == (1, 1)


def test_a_counter_that_stands_still_has_no_edge(simulated: Simulate) -> None:
    simulation = simulated(Constant(0), virtual=True, start_s=10)
    sampler = started(simulation)
    simulation.advance(1)
    assert not sampler.edge_pending()
    assert not sampler.counter(0)["edge"].any()
    assert sampler.stats().counter_reads <= 40


def test_the_readings_asked_for_come_on_either_side_of_the_next_refresh(simulated: Simulate) -> None:
    simulation = simulated(virtual=True, start_s=10)
    sampler = started(simulation)
    simulation.advance(1.7)
    found = sampler.counter(0)
    edge = found[found["edge"] == 1][0]
    asked_ns = simulation.clock.now_ns()
    sampler.read_counter()
    assert sampler.reads_pending()
    assert not sampler.edge_pending()
    sampler.tick(asked_ns)
    simulation.clock.attach(sampler.tick)  # it does not know of the request's deadlines
    simulation.advance(0.3)
    assert not sampler.reads_pending()
    first, reading = sampler.counter(0)
    assert first["before_ns"] - asked_ns < 5e6
    assert (first["edge"], reading["edge"]) == (0, 0)
    assert 50 <= (reading["before_ns"] - asked_ns) / 1e6 <= 152
    into_period_ms = (reading["before_ns"] - (edge["before_ns"] + edge["after_ns"]) // 2) / 1e6 % 100
    assert into_period_ms == pytest.approx(50, abs=2)


def test_without_a_phase_three_readings_are_spread_over_a_period(simulated: Simulate) -> None:
    simulation = simulated(virtual=True, start_s=10)
    sampler = sampler_of(simulation)
    sampler.start(threaded=False)
    asked_ns = simulation.clock.now_ns()
    sampler.read_counter()
    sampler.tick(asked_ns)
    simulation.clock.attach(sampler.tick)
    simulation.advance(0.16)
    readings = sampler.counter(0)
    late_ms = (readings["before_ns"] - asked_ns) / 1e6
    assert all(np.abs(late_ms - wanted).min() < 8 for wanted in (0, 55, 110))  # some wait for the search's


@pytest.mark.alone
def test_stop_does_not_wait_for_a_search(simulated: Simulate) -> None:
    sampler = sampler_of(simulated())
    sampler.start()
    sampler.wait_drained(5)
    assert sampler.edge_pending()
    before = time.monotonic()
    sampler.stop()
    assert time.monotonic() - before < 0.1
    assert not sampler.reads_pending()


def test_samples_survive_a_stepped_wall_clock(simulated: Simulate) -> None:
    simulation = simulated(virtual=True, start_s=10)
    sampler = started(simulation)
    for step_s in (-3600.0, 7200.0, -0.3):
        simulation.advance(5)
        simulation.gpus[0].inject(WallClockStep(step_s))
    simulation.advance(5)
    t_s = sampler.power(0)["t_ns"] / SECOND
    assert np.all(np.diff(t_s) > 0)
    # A step may cost what was not yet drained, never more than one drain.
    assert np.diff(t_s).max() < 1.5
    assert simulation.clock.now_ns() / SECOND - t_s[-1] < 1.5


def test_a_lost_gpu_is_told_once_and_read_again_when_it_is_back(simulated: Simulate) -> None:
    simulation = simulated(virtual=True, start_s=10)
    sampler = started(simulation)
    simulation.gpus[0].inject(GpuLost(at_s=5.0, back_s=15.0))
    simulation.advance(12)
    errors = sampler.take_errors()
    assert len(errors) == 2  # one of the samples, one of the counter
    assert all(device == 0 and "(15)" in message for device, message in errors)
    sampler.power(0)
    simulation.advance(40)
    assert len(sampler.power(0)) > 1000
    assert len(sampler.counter(0)) > 1
    assert sampler.take_errors() == []


def test_an_unknown_device_is_refused_at_start(simulated: Simulate) -> None:
    simulation = simulated()
    clock = _native.Clock.monotonic()
    sampler = _native.Sampler(_native.Nvml(simulation.nvml_path), ["GPU-nobody"], clock)
    with pytest.raises(NvmlError):
        sampler.start()
    sampler.stop()


def test_ticking_a_sampler_that_has_a_thread_is_an_error(simulated: Simulate) -> None:
    sampler = sampler_of(simulated())
    sampler.start()
    with pytest.raises(RuntimeError, match="threaded=False"):
        sampler.tick(0)
    sampler.stop()


@pytest.mark.alone
def test_the_thread_drains_on_request_and_ends_at_stop(simulated: Simulate) -> None:
    sampler = sampler_of(simulated())
    sampler.start()
    assert sampler.wait_drained(5) >= 1
    assert "energy-sampler" in thread_names()
    deadline = time.monotonic() + 5
    while sampler.edge_pending() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sampler.counter(0)["edge"].sum() == 1
    sampler.read_counter()
    while sampler.reads_pending() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sampler.counter(0)["edge"].tolist() == [0, 0]
    before = time.monotonic()
    sampler.drain_now()
    sampler.wait_drained(5)
    assert time.monotonic() - before < 0.5
    sampler.stop()
    sampler.stop()
    assert "energy-sampler" not in thread_names()
    assert sampler.stats().thread_cpu_s > 0


def test_waiting_lets_other_threads_run(simulated: Simulate) -> None:
    sampler = sampler_of(simulated(), drain_period_ns=3600 * SECOND)
    sampler.start()
    sampler.wait_drained(5)
    waiter = threading.Thread(target=sampler.wait_drained, args=(60.0,))
    waiter.start()
    sampler.stop()
    waiter.join(5)
    assert not waiter.is_alive()


def test_a_hanging_driver_does_not_hold_up_stop(simulated: Simulate) -> None:
    simulation = simulated()
    simulation.gpus[0].inject(Hang("nvmlDeviceGetSamples", 4.0))
    sampler = sampler_of(simulation)
    sampler.start()
    assert sampler.wait_drained(0.2) == 0
    before = time.monotonic()
    sampler.stop()
    assert time.monotonic() - before < 3
    assert ["left behind" in message for _, message in sampler.take_errors()] == [True]
    time.sleep(2.2)  # until it has come back: the simulation ends with this test


def test_marks_keep_their_order_and_their_counts(simulated: Simulate) -> None:
    simulation = simulated(virtual=True)
    log = _native.MarkLog(_native.Clock.simulated(simulation.nvml_path))
    log.mark(1, begin=True)
    log.mark(65535, begin=False, samples=32, tokens=4096)
    log.mark_at(3, begin=True, host_ns=123)
    assert log.resolve() == 0
    marks = log.drain()
    assert marks["code"].tolist() == [1, 65535, 3]
    assert marks["begin"].tolist() == [1, 0, 1]
    assert marks["samples"].tolist() == [-1, 32, -1]
    assert marks["tokens"].tolist() == [-1, 4096, -1]
    assert marks["gpu_ns"].tolist() == [-1, -1, -1]
    assert marks["host_ns"][2] == 123
    assert len(log.drain()) == 0
    assert (log.stats.marks, log.stats.events, log.stats.dropped) == (3, 0, 0)


def test_a_mark_is_dropped_when_nobody_resolves(simulated: Simulate) -> None:
    log = _native.MarkLog(_native.Clock.monotonic(), capacity=16)
    for _ in range(20):
        log.mark(1, begin=True)
    assert log.stats.dropped == 4
    assert log.resolve() == 0
    assert len(log.drain()) == 16


def queue_work(gpu: SimulatedDevice, log: _native.MarkLog, steps: int) -> None:
    for _ in range(steps):
        gpu.launch(ops=8e12)  # 10 ms
        log.mark(1, begin=False, stream=0)


def test_run_ahead_marks_are_timed_when_the_device_gets_there(simulated: Simulate) -> None:
    simulation = simulated(virtual=True, start_s=10)
    clock = _native.Clock.simulated(simulation.nvml_path)
    log = _native.MarkLog(clock, _native.Cuda(simulation.cuda_path))
    sampler = started(simulation, marks=log)
    simulation.advance(1)
    queued = clock.now_ns()
    queue_work(simulation.gpus[0], log, steps=60)
    assert clock.now_ns() - queued < 0.1 * SECOND  # the host ran ahead
    simulation.advance(0.3)
    sampler.drain_now()
    sampler.tick(clock.now_ns())
    assert 0 < len(log.drain()) < 40
    simulation.advance(1)
    queue_work(simulation.gpus[0], log, steps=3)
    simulation.advance(1)
    ends = log.drain()["gpu_ns"]
    np.testing.assert_allclose(np.diff(ends[:-3]), 10e6, rtol=0.01)
    assert log.stats.event_misses == 0
    assert log.stats.resolve_errors == ""
    assert sampler.take_errors() == []


def test_without_a_context_marks_have_no_events(simulated: Simulate) -> None:
    simulation = simulated(virtual=True, cuda=False)
    log = _native.MarkLog(_native.Clock.simulated(simulation.nvml_path), _native.Cuda(simulation.cuda_path))
    log.mark(1, begin=True, stream=0)
    assert log.resolve() == 0
    assert log.drain()["gpu_ns"].tolist() == [-1]
    assert (log.stats.events, log.stats.event_misses) == (0, 1)


def test_cuda_is_left_alone_until_the_process_loads_it(simulated: Simulate) -> None:
    program = """
import ctypes
from energy_plugins import EnergyMeter

def loaded():
    return "libcuda" in open("/proc/self/maps").read()

with EnergyMeter() as meter:
    with meter.step():
        pass
    before = loaded()
    ctypes.CDLL("libcuda.so.1")
    with meter.step():
        pass
    print(before, loaded(), meter.run._marks.stats.events)
"""
    simulation = simulated()
    environment = simulation.environment()
    del environment["ENERGY_CUDA_LIBRARY"]  # so that it goes by the system's name, which leads to the simulated one
    told = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False", "True", "2"], told.stderr


def test_a_forked_child_does_nothing_and_harms_nothing(simulated: Simulate) -> None:
    simulation = simulated()
    log = _native.MarkLog(_native.Clock.monotonic(), _native.Cuda(simulation.cuda_path))
    sampler = sampler_of(simulation, marks=log)
    sampler.start()
    log.mark(1, begin=True, stream=0)
    sampler.wait_drained(5)
    sampler.drain_now()
    sampler.wait_drained(5)
    child = os.fork()
    if child == 0:
        log.mark(2, begin=True, stream=0)
        sampler.find_edge()
        quiet = len(log.drain()) == len(sampler.power(0)) == log.resolve() == sampler.wait_drained(60) == 0
        sampler.stop()
        del sampler, log
        os._exit(0 if quiet else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert log.drain()["code"].tolist() == [1]
    assert len(sampler.power(0)) > 0
    sampler.stop()


def test_the_interpreter_may_end_with_a_sampler_alive(simulated: Simulate) -> None:
    simulation = simulated()
    script = f"""
from energy_plugins import _native
clock = _native.Clock.monotonic()
log = _native.MarkLog(clock, _native.Cuda({simulation.cuda_path!r}))
sampler = _native.Sampler(_native.Nvml({simulation.nvml_path!r}), [{simulation.gpus[0].uuid!r}], clock, marks=log)
sampler.start()
log.mark(1, True, 0)
sampler.wait_drained(5)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=simulation.environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
