from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pynvml
import pytest

from energy_plugins.testing import (
    Constant,
    CounterJump,
    CounterReset,
    DriverMismatch,
    Fault,
    ForeignLimit,
    GpuLost,
    Hang,
    HiddenProcesses,
    Ignored,
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
    assert not [pid for pid in listed() if Path("/proc", str(pid)).exists()]
    simulation.gpus[0].heal()
    assert listed() == [os.getpid()]


def test_faults_begin_and_end_on_time(simulation: Simulation) -> None:
    simulation.gpus[0].inject(NoSampleBuffer(at_s=1.0, back_s=3.0))
    simulation.gpus[0].inject(NoPermission("nvmlDeviceGetPowerUsage", at_s=2.0, back_s=4.0))
    for fails_a, fails_b in [(False, False), (True, False), (True, True), (False, True), (False, False)]:
        for call, fails in [(samples, fails_a), (power_usage, fails_b)]:
            try:
                call()
            except pynvml.NVMLError:
                assert fails
            else:
                assert not fails
        simulation.advance(1.0 + 1e-6)


def test_slots_of_faults_that_have_passed_are_free_again(simulation: Simulation) -> None:
    for _ in range(500):
        simulation.gpus[0].inject(GpuLost(back_s=0.5))
        simulation.advance(0.6)
    power_usage()


def test_a_counter_leaps_and_a_reset_undoes_it(simulation: Simulation) -> None:
    before_j = counter_j()
    simulation.gpus[0].inject(CounterJump(5000.0, at_s=1.0))
    simulation.advance(0.5)
    assert counter_j() - before_j < 500
    simulation.advance(1.0)
    assert counter_j() - before_j == pytest.approx(5000 + 1.5 * 300, abs=60)
    simulation.gpus[0].heal()
    assert counter_j() - before_j > 5000
    simulation.gpus[0].inject(CounterReset())
    simulation.advance(1.0)
    assert counter_j() == pytest.approx(300, abs=60)


def test_a_library_of_another_version_does_not_open(simulation: Simulation) -> None:
    simulation.gpus[1].inject(DriverMismatch())
    with pytest.raises(pynvml.NVMLError_LibRmVersionMismatch):
        pynvml.nvmlInit()
    simulation.gpus[1].heal()
    pynvml.nvmlInit()


def test_a_suspended_machine_keeps_its_monotonic_time(simulation: Simulation) -> None:
    clock, before_j = simulation.clock, counter_j()
    now_ns, wall_ns = clock.now_ns(), clock.wall_ns()
    simulation.suspend(600.0, power_w=20.0)
    assert clock.suspended_ns() == 600 * 10**9
    assert clock.now_ns() == now_ns
    assert clock.wall_ns() - wall_ns == 600 * 10**9
    simulation.advance(0.2)
    assert counter_j() - before_j == pytest.approx(12_000 + 0.2 * 300, abs=60)


@pytest.mark.parametrize("ends", ["heal", "leave"])
def test_a_call_that_hangs_for_ever_is_let_go(simulated: Simulated, ends: str) -> None:
    from energy_plugins.testing import simulated_gpus

    with simulated_gpus(Constant(300)) as simulation:
        pynvml.nvmlInit()
        simulation.gpus[0].inject(Hang("nvmlDeviceGetPowerUsage", math.inf))
        thread = threading.Thread(target=power_usage)
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        if ends == "heal":
            simulation.gpus[0].heal()
            thread.join(1.0)
            assert not thread.is_alive()
    thread.join(1.0)
    assert not thread.is_alive()


def test_virtual_time_has_no_for_ever(simulation: Simulation) -> None:
    with pytest.raises(ValueError, match="nobody would be left"):
        simulation.gpus[0].inject(Hang("nvmlDeviceGetPowerUsage", math.inf))


def test_a_lacking_library_lacks_what_it_should_and_nothing_else(simulation: Simulation) -> None:
    with simulation.lacking("nvmlDeviceGetSamples"):
        pynvml.nvmlInit()
        with pytest.raises(pynvml.NVMLError_FunctionNotFound):
            samples()
        power_usage()
    samples()
    with pytest.raises(ValueError, match="has no symbol nvmlNothing"), simulation.lacking("nvmlNothing"):
        pass


def test_another_limiter_holds_the_gpu_below_what_is_asked_for(simulation: Simulation) -> None:
    gpu, device = pynvml.nvmlDeviceGetHandleByIndex(0), simulation.gpus[0]
    device.inject(ForeignLimit(300, at_s=1.0, back_s=2.0))
    pynvml.nvmlDeviceSetPowerManagementLimit(gpu, 400_000)

    def drawn_w() -> float:
        start_ns = simulation.clock.now_ns()
        device.launch(ops=1e14, wait=True)
        end_ns = simulation.clock.now_ns()
        return device.true_energy_j(start_ns, end_ns) / (end_ns - start_ns) * 1e9

    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu) == 400_000
    assert drawn_w() == pytest.approx(400, rel=0.02)
    simulation.advance(1.0)
    assert pynvml.nvmlDeviceGetPowerManagementLimit(gpu) == 400_000
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu) == 300_000
    assert drawn_w() == pytest.approx(300, rel=0.02)
    (field,) = pynvml.nvmlDeviceGetFieldValues(gpu, [pynvml.NVML_FI_DEV_POWER_CURRENT_LIMIT])
    assert field.value.uiVal == 300_000
    simulation.advance(2.0)
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu) == 400_000


def test_a_call_that_is_ignored_succeeds_and_changes_nothing(simulation: Simulation) -> None:
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    simulation.gpus[0].inject(Ignored("nvmlDeviceSetPowerManagementLimit"))
    pynvml.nvmlDeviceSetPowerManagementLimit(gpu, 400_000)
    assert pynvml.nvmlDeviceGetPowerManagementLimit(gpu) == 700_000
    pynvml.nvmlDeviceSetPersistenceMode(gpu, 1)
    assert pynvml.nvmlDeviceGetPersistenceMode(gpu) == 1
    simulation.gpus[0].heal()
    pynvml.nvmlDeviceSetPowerManagementLimit(gpu, 400_000)
    assert pynvml.nvmlDeviceGetPowerManagementLimit(gpu) == 400_000
