"""GPM of the simulated driver, through nvidia-ml-py: what its layouts say, ours must."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pynvml
import pytest

from energy_plugins.testing import Constant, GpuLost, SimulatedDevice, Simulation

Simulated = Callable[..., Simulation]

SM, TENSOR, DRAM = (
    pynvml.NVML_GPM_METRIC_SM_UTIL,
    pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL,
    pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL,
)


@pytest.fixture
def simulation(simulated: Simulated) -> Simulation:
    simulation = simulated(Constant(125.0), virtual=True)
    pynvml.nvmlInit()
    return simulation


def activity(simulation: Simulation, work: Callable[[SimulatedDevice], None], seconds: float) -> Mapping[int, float]:
    """Return GPM's per cent while ``work`` is done again and again."""
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    get = pynvml.c_nvmlGpmMetricsGet_t()
    get.version, get.numMetrics = pynvml.NVML_GPM_METRICS_GET_VERSION, 4
    for row, metric in enumerate((SM, TENSOR, DRAM, pynvml.NVML_GPM_METRIC_NVDEC_0_UTIL)):
        get.metrics[row].metricId = metric
    get.sample1, get.sample2 = pynvml.nvmlGpmSampleAlloc(), pynvml.nvmlGpmSampleAlloc()
    pynvml.nvmlGpmSampleGet(device, get.sample1)
    until_ns = simulation.clock.now_ns() + round(seconds * 1e9)
    while simulation.clock.now_ns() < until_ns:
        work(simulation.gpus[0])
    pynvml.nvmlGpmSampleGet(device, get.sample2)
    pynvml.nvmlGpmMetricsGet(get)
    for sample in (get.sample1, get.sample2):
        pynvml.nvmlGpmSampleFree(sample)
    assert get.metrics[3].nvmlReturn == pynvml.NVML_ERROR_NOT_SUPPORTED
    assert all(get.metrics[row].nvmlReturn == pynvml.NVML_SUCCESS for row in range(3))
    return {get.metrics[row].metricId: get.metrics[row].value for row in range(3)}


def test_it_is_supported(simulation: Simulation) -> None:
    assert pynvml.nvmlGpmQueryDeviceSupport(pynvml.nvmlDeviceGetHandleByIndex(0)).isSupportedDevice == 1


def test_idle_is_nothing(simulation: Simulation) -> None:
    assert activity(simulation, lambda _: simulation.advance(0.2), 1.0) == {SM: 0.0, TENSOR: 0.0, DRAM: 0.0}


def test_a_product_is_arithmetic_and_a_copy_traffic(simulation: Simulation) -> None:
    product = activity(simulation, lambda gpu: gpu.launch(ops=8e12, bytes=8e9, wait=True), 1.0)
    assert product == {
        SM: pytest.approx(100, abs=1),
        TENSOR: pytest.approx(100, abs=1),
        DRAM: pytest.approx(18.6, abs=1),
    }
    copy = activity(simulation, lambda gpu: gpu.launch(bytes=4.3e10, wait=True), 1.0)
    assert copy == {SM: pytest.approx(100, abs=1), TENSOR: 0.0, DRAM: pytest.approx(100, abs=1)}


def test_launching_is_no_activity(simulation: Simulation) -> None:
    tiny = activity(simulation, lambda gpu: gpu.launch(ops=8e8, bytes=1e3, wait=True), 0.2)
    assert tiny[SM] == pytest.approx(20, abs=1)  # 1 us of work, 4 us of launching


def test_half_of_the_time_is_half_the_activity(simulation: Simulation) -> None:
    def half(gpu: SimulatedDevice) -> None:
        gpu.launch(ops=8e12, wait=True)
        simulation.advance(0.01)

    assert activity(simulation, half, 1.0)[SM] == pytest.approx(50, abs=1)


def test_a_script_says_as_much_as_its_power_does(simulated: Simulated) -> None:
    simulation = simulated(Constant(125.0 + 545.0 / 4), virtual=True)
    pynvml.nvmlInit()
    assert activity(simulation, lambda _: simulation.advance(0.2), 1.0)[SM] == pytest.approx(25)


def test_samples_of_a_lost_gpu_and_in_the_wrong_order_are_refused(simulation: Simulation) -> None:
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    get = pynvml.c_nvmlGpmMetricsGet_t()
    get.version, get.numMetrics = pynvml.NVML_GPM_METRICS_GET_VERSION, 0
    get.sample1, get.sample2 = pynvml.nvmlGpmSampleAlloc(), pynvml.nvmlGpmSampleAlloc()
    pynvml.nvmlGpmSampleGet(device, get.sample2)
    simulation.advance(0.2)
    pynvml.nvmlGpmSampleGet(device, get.sample1)
    with pytest.raises(pynvml.NVMLError, match="Invalid"):
        pynvml.nvmlGpmMetricsGet(get)
    simulation.gpus[0].inject(GpuLost())
    with pytest.raises(pynvml.NVMLError, match="lost"):
        pynvml.nvmlGpmSampleGet(device, get.sample2)
