from __future__ import annotations

import os
import time
from collections.abc import Callable

import pynvml
import pytest

from energy_plugins.testing import (
    Constant,
    CounterReset,
    Fault,
    GpuLost,
    Hang,
    HiddenProcesses,
    MissingSymbol,
    NoCounter,
    NoPermission,
    NoSampleBuffer,
    Simulation,
    WallClockStep,
)

Simulated = Callable[..., Simulation]


@pytest.fixture
def simulation(simulated: Simulated) -> Simulation:
    simulation = simulated(Constant(300), virtual=True, count=2)
    pynvml.nvmlInit()
    simulation.advance(1.0)
    return simulation


def samples() -> object:
    return pynvml.nvmlDeviceGetSamples(pynvml.nvmlDeviceGetHandleByIndex(0), pynvml.NVML_TOTAL_POWER_SAMPLES, 0)


def counter_j(index: int = 0) -> float:
    return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByIndex(index))) * 1e-3


def power_usage() -> object:
    return pynvml.nvmlDeviceGetPowerUsage(pynvml.nvmlDeviceGetHandleByIndex(0))


@pytest.mark.parametrize(
    ("fault", "call", "code"),
    [
        (NoSampleBuffer(), samples, pynvml.NVML_ERROR_NOT_SUPPORTED),
        (NoCounter(), counter_j, pynvml.NVML_ERROR_NOT_SUPPORTED),
        (GpuLost(), power_usage, pynvml.NVML_ERROR_GPU_IS_LOST),
        (MissingSymbol("nvmlDeviceGetSamples"), samples, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND),
        (NoPermission("nvmlDeviceGetPowerUsage"), power_usage, pynvml.NVML_ERROR_NO_PERMISSION),
    ],
)
def test_a_fault_answers_with_its_code_until_healed(
    simulation: Simulation, fault: Fault, call: Callable[[], object], code: int
) -> None:
    call()
    simulation.gpus[0].inject(fault)
    with pytest.raises(pynvml.NVMLError) as error:
        call()
    assert error.value.value == code
    simulation.gpus[0].heal()
    call()


def test_faults_stay_on_their_gpu(simulation: Simulation) -> None:
    simulation.gpus[0].inject(NoCounter())
    assert counter_j(1) > 0


def test_a_gpu_is_lost_and_comes_back(simulation: Simulation) -> None:
    simulation.gpus[0].inject(GpuLost(at_s=1.0, back_s=3.0))
    power_usage()
    simulation.advance(2.0)
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        power_usage()
    simulation.advance(2.0)
    power_usage()


def test_a_reset_counter_begins_at_zero_and_counts_on(simulation: Simulation) -> None:
    simulation.gpus[0].inject(CounterReset(at_s=1.0))
    assert counter_j() > 1000
    simulation.advance(3.0)
    assert counter_j() == pytest.approx(2 * 300, abs=40)
    simulation.gpus[0].heal()
    assert counter_j() < 1000


def test_a_hanging_call_takes_its_time(simulation: Simulation) -> None:
    simulation.gpus[0].inject(Hang("nvmlDeviceGetPowerUsage", seconds=7.0))
    before_ns = simulation.clock.now_ns()
    power_usage()
    assert simulation.clock.now_ns() - before_ns >= 7_000_000_000


def test_a_hanging_call_does_not_burn_cpu_in_real_time(simulated: Simulated) -> None:
    simulated(faults=[Hang("nvmlDeviceGetPowerUsage", seconds=0.1)])
    pynvml.nvmlInit()
    wall_s, cpu_s = time.monotonic(), time.thread_time()
    power_usage()
    assert time.monotonic() - wall_s >= 0.1
    assert time.thread_time() - cpu_s < 0.05


def test_faults_given_at_the_start_hold_for_every_gpu(simulated: Simulated) -> None:
    simulation = simulated(count=3, virtual=True, faults=[NoCounter(), WallClockStep(5)])
    pynvml.nvmlInit()
    for index in range(3):
        with pytest.raises(pynvml.NVMLError_NotSupported):
            counter_j(index)
    epoch_ns = simulation.clock.wall_ns() - simulation.clock.now_ns()
    assert epoch_ns % 10**12 == 5 * 10**9  # one step, not one for each GPU


@pytest.mark.parametrize(("fault", "shown"), [(HiddenProcesses(), 0), (HiddenProcesses(foreign_pids=True), 1)])
def test_hidden_processes_are_not_listed_or_by_numbers_that_nobody_has(
    simulation: Simulation, fault: HiddenProcesses, shown: int
) -> None:
    def listed() -> list[int]:
        gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
        return [process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses_v3(gpu)]

    simulation.gpus[0].launch(ops=1e9)
    assert listed() == [os.getpid()]
    simulation.gpus[0].inject(fault)
    assert len(listed()) == shown
    assert not [pid for pid in listed() if os.path.exists(f"/proc/{pid}")]  # noqa: PTH110 - a number
    simulation.gpus[0].heal()
    assert listed() == [os.getpid()]
