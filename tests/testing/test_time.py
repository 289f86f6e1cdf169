from __future__ import annotations

import time
from collections.abc import Callable

import pynvml
import pytest

from energy_plugins.testing import Constant, Simulation, Square, WallClockStep

S = 1_000_000_000
Simulated = Callable[..., Simulation]


def test_virtual_time_moves_only_when_told(simulated: Simulated) -> None:
    clock = simulated(virtual=True).clock
    before_ns = clock.now_ns()
    time.sleep(0.002)
    assert clock.now_ns() == before_ns
    clock.sleep(1.5)
    assert clock.now_ns() == before_ns + 1.5 * S


def test_ticks_are_called_at_their_deadlines(simulated: Simulated) -> None:
    simulation = simulated(virtual=True)
    called: list[tuple[str, int]] = []

    def every(name: str, period_ns: int) -> Callable[[int], int]:
        def tick(now_ns: int) -> int:
            called.append((name, now_ns))
            return now_ns + period_ns

        return tick

    fast, slow = every("fast", S // 2), every("slow", S)
    simulation.clock.attach(fast)
    simulation.clock.attach(slow)
    simulation.advance(1.2)
    assert sorted(called) == [("fast", 0), ("fast", S // 2), ("fast", S), ("slow", 0), ("slow", S)]
    simulation.clock.detach(fast)
    simulation.advance(1.0)
    assert called[-1] == ("slow", 2 * S)
    assert simulation.clock.now_ns() == 2.2 * S


def test_a_tick_that_reads_or_sleeps_takes_virtual_time(simulated: Simulated) -> None:
    simulation = simulated(virtual=True)
    pynvml.nvmlInit()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    starts_ns: list[int] = []

    def tick(now_ns: int) -> int:
        starts_ns.append(now_ns)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
        simulation.clock.sleep(0.25)
        return now_ns + S

    simulation.clock.attach(tick)
    simulation.advance(3.0)
    assert starts_ns == [0, S, 2 * S, 3 * S]
    assert simulation.clock.now_ns() > 3.25 * S


def test_an_hour_of_virtual_sampling_takes_seconds(simulated: Simulated) -> None:
    simulation = simulated(Square(130, 700, 0.01), virtual=True)
    pynvml.nvmlInit()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    last_us = samples = 0
    began_s = time.monotonic()
    for _ in range(3600):
        simulation.advance(1.0)
        _, new = pynvml.nvmlDeviceGetSamples(gpu, pynvml.NVML_TOTAL_POWER_SAMPLES, last_us)
        last_us = new[-1].timeStamp
        samples += len(new)
    assert samples == pytest.approx(3600 * 50, abs=200)
    assert time.monotonic() - began_s < 20


def test_real_time_is_the_machines(simulated: Simulated) -> None:
    simulation = simulated()
    assert abs(simulation.clock.now_ns() - time.monotonic_ns()) < S
    assert abs(simulation.clock.wall_ns() - time.time_ns()) < S
    with pytest.raises(RuntimeError, match="virtual=True"):
        simulation.advance(1.0)


def test_real_counter_reads_burn_this_threads_cpu(simulated: Simulated) -> None:
    simulated()
    pynvml.nvmlInit()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    cpu_ns = time.thread_time_ns()
    for _ in range(20):
        pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    assert time.thread_time_ns() - cpu_ns > 20 * 1_000_000


def test_the_wall_clock_steps_and_old_samples_keep_their_stamps(simulated: Simulated) -> None:
    simulation = simulated(Constant(300), virtual=True)
    pynvml.nvmlInit()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    simulation.advance(2.0)
    wall_ns = simulation.clock.wall_ns()
    simulation.gpus[0].inject(WallClockStep(-3600))
    assert simulation.clock.wall_ns() == wall_ns - 3600 * S
    simulation.advance(1.0)
    _, samples = pynvml.nvmlDeviceGetSamples(gpu, pynvml.NVML_TOTAL_POWER_SAMPLES, 0)
    before = [sample for sample in samples if sample.timeStamp * 1000 > wall_ns - 1800 * S]
    assert 0 < len(before) < len(samples)
    assert samples[-1].timeStamp * 1000 < wall_ns - 3000 * S


def test_a_full_queue_blocks_the_launch_in_virtual_time(simulated: Simulated) -> None:
    simulation = simulated(virtual=True)
    gpu = simulation.gpus[0]
    for _ in range(1024):
        gpu.launch(ops=8e11)
    assert simulation.clock.now_ns() == 0
    gpu.launch(ops=8e11)
    assert 0.001 * S <= simulation.clock.now_ns() <= 0.0011 * S


@pytest.mark.alone
def test_waiting_for_work_takes_real_time(simulated: Simulated) -> None:
    gpu = simulated().gpus[0]
    began_s = time.monotonic()
    gpu.launch(ops=1.6e13)
    assert time.monotonic() - began_s < 0.015
    gpu.launch(ops=1.6e13, wait=True)
    assert 0.04 <= time.monotonic() - began_s < 0.2
