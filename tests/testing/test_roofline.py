from __future__ import annotations

from collections.abc import Callable

import pynvml
import pytest

from energy_plugins.testing import NoPermission, Simulation

Simulated = Callable[..., Simulation]
MATMUL = {"ops": 8e12, "bytes": 5e9}
COPY = {"bytes": 4.3e10}


@pytest.fixture
def simulation(simulated: Simulated) -> Simulation:
    simulation = simulated(virtual=True)
    pynvml.nvmlInit()
    return simulation


def handle() -> object:
    return pynvml.nvmlDeviceGetHandleByIndex(0)


def run(simulation: Simulation, work: dict[str, float]) -> tuple[float, float]:
    """Run ``work`` alone; return its seconds and mean watts."""
    gpu, start_ns = simulation.gpus[0], simulation.clock.now_ns()
    gpu.launch(work.get("ops", 0), work.get("bytes", 0), wait=True)
    seconds = (simulation.clock.now_ns() - start_ns) * 1e-9
    return seconds, gpu.true_energy_j(start_ns, simulation.clock.now_ns()) / seconds


def test_rates_and_powers_of_an_h200(simulation: Simulation) -> None:
    matmul_s, matmul_w = run(simulation, MATMUL)
    copy_s, copy_w = run(simulation, COPY)
    assert matmul_s == pytest.approx(0.0103, rel=0.05)
    assert matmul_w == pytest.approx(690, rel=0.03)  # 682-690 W recorded
    assert copy_s == pytest.approx(0.01, rel=0.01)
    assert copy_w == pytest.approx(475, rel=0.02)  # 470-490 W recorded


def test_many_small_kernels_cost_their_launches(simulation: Simulation) -> None:
    seconds, power_w = run(simulation, {"ops": 8e6})
    assert seconds == pytest.approx(4e-6, rel=0.01)
    assert power_w == pytest.approx(125, abs=3)


def test_a_limit_slows_arithmetic_more_the_lower_it_is_and_is_kept(simulation: Simulation) -> None:
    free_s, _ = run(simulation, MATMUL)
    slowdowns = []
    for limit_w in (600, 500, 400, 300, 200):
        pynvml.nvmlDeviceSetPowerManagementLimit(handle(), limit_w * 1000)
        assert pynvml.nvmlDeviceGetPowerManagementLimit(handle()) == limit_w * 1000
        seconds, power_w = run(simulation, MATMUL)
        assert power_w <= limit_w
        slowdowns.append(seconds / free_s)
    assert slowdowns == sorted(slowdowns)
    assert 1.05 < slowdowns[0] < 1.2
    assert slowdowns[-1] > 3  # 3.1 was published for H100 (LLaMA3-8B, 700 -> 200 W)


def test_energy_falls_to_a_valley_and_rises_again(simulation: Simulation) -> None:
    energies_j = []
    for limit_w in (700, 450, 200):
        pynvml.nvmlDeviceSetPowerManagementLimit(handle(), limit_w * 1000)
        seconds, power_w = run(simulation, MATMUL)
        energies_j.append(seconds * power_w)
    assert energies_j[1] < energies_j[0]
    assert energies_j[1] < energies_j[2]


def test_a_limit_above_what_copies_draw_changes_nothing(simulation: Simulation) -> None:
    free = run(simulation, COPY)
    pynvml.nvmlDeviceSetPowerManagementLimit(handle(), 500_000)
    assert run(simulation, COPY) == pytest.approx(free)
    pynvml.nvmlDeviceSetPowerManagementLimit(handle(), 200_000)
    slowed_s, slowed_w = run(simulation, COPY)
    assert slowed_w == pytest.approx(200, rel=0.01)
    assert slowed_s > 3 * free[0]


def test_locked_clocks_slow_arithmetic_in_proportion(simulation: Simulation) -> None:
    pynvml.nvmlDeviceSetGpuLockedClocks(handle(), 990, 990)
    locked_s, _ = run(simulation, {"ops": 8e12})
    pynvml.nvmlDeviceResetGpuLockedClocks(handle())
    free_s, _ = run(simulation, {"ops": 8e12})
    assert locked_s / free_s == pytest.approx(2.0, rel=0.02)


def test_clock_and_reasons_show_a_binding_limit(simulation: Simulation) -> None:
    simulation.advance(2.0)
    assert pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle()) == pynvml.nvmlClocksEventReasonGpuIdle
    pynvml.nvmlDeviceSetPowerManagementLimit(handle(), 300_000)
    simulation.gpus[0].launch(ops=8e15)
    simulation.advance(0.5)
    assert pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle()) == pynvml.nvmlClocksEventReasonSwPowerCap
    assert 900 < pynvml.nvmlDeviceGetClockInfo(handle(), pynvml.NVML_CLOCK_SM) < 1300
    assert pynvml.nvmlDeviceGetUtilizationRates(handle()).gpu == 100


def test_supported_clocks_are_listed(simulation: Simulation) -> None:
    (memory_mhz,) = pynvml.nvmlDeviceGetSupportedMemoryClocks(handle())
    clocks_mhz = pynvml.nvmlDeviceGetSupportedGraphicsClocks(handle(), memory_mhz)
    assert (clocks_mhz[0], clocks_mhz[-1], len(clocks_mhz)) == (1980, 345, 110)


@pytest.mark.parametrize("limit_w", [199, 701])
def test_limits_outside_the_range_are_refused(simulation: Simulation, limit_w: int) -> None:
    assert pynvml.nvmlDeviceGetPowerManagementLimitConstraints(handle()) == [200_000, 700_000]
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        pynvml.nvmlDeviceSetPowerManagementLimit(handle(), limit_w * 1000)


def test_without_permission_nothing_changes(simulation: Simulation) -> None:
    simulation.gpus[0].inject(NoPermission())
    with pytest.raises(pynvml.NVMLError_NoPermission):
        pynvml.nvmlDeviceSetPowerManagementLimit(handle(), 400_000)
    assert pynvml.nvmlDeviceGetPowerManagementLimit(handle()) == 700_000
    simulation.gpus[0].heal()
    pynvml.nvmlDeviceSetPowerManagementLimit(handle(), 400_000)
