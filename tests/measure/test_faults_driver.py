"""A driver that lacks symbols, does not fit its kernel module, or is shut down by somebody else."""

from __future__ import annotations

import re
from pathlib import Path

import pynvml
import pytest
from faulty import measured, shut_down
from measuring import COUNTER, POWER_W, SAMPLES, Simulated

from energy_plugins.testing import Constant, DriverMismatch, MissingSymbol

BY_UUID = "nvmlDeviceGetHandleByUUID"
USED = re.findall(r'find<.*>\("(nvml\w+)"\)', Path(__file__).parents[2].joinpath("csrc/nvml.cpp").read_text("utf-8"))
USED_BY_PYTHON = [
    "nvmlInitWithFlags",
    "nvmlSystemGetDriverVersion",
    "nvmlDeviceGetCount_v2",
    "nvmlDeviceGetHandleByIndex_v2",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetName",
]
LEFT = {SAMPLES: ("instant power", "energy counter"), COUNTER: ("power samples",)}
"""What a GPU is measured by without a symbol, where that is not all there is."""
LACKING = {
    SAMPLES: {"power samples"},
    COUNTER: {"energy counter"},
    "nvmlDeviceGetFieldValues": {"instant power", "average power"},
    "nvmlDeviceGetPowerUsage": {"power usage"},
    "nvmlDeviceGetClockInfo": {"sm_clock_mhz"},
    "nvmlDeviceGetTemperature": {"temperature_c"},
    "nvmlDeviceGetEnforcedPowerLimit": {"enforced_limit_w"},
    "nvmlDeviceGetPowerManagementLimit": {"requested_limit_w"},
    "nvmlDeviceGetUtilizationRates": {"utilisation"},
}
"""What the report says is lacking without a symbol."""


class TestMissingSymbols:
    def test_the_list_is_that_of_the_source(self) -> None:
        assert {"nvmlInit_v2", "nvmlShutdown", SAMPLES, COUNTER} <= set(USED)

    @pytest.mark.parametrize("symbol", sorted({*USED, *USED_BY_PYTHON}))
    def test_each_alone_costs_what_it_is_for(self, simulated: Simulated, symbol: str) -> None:
        simulation = simulated(Constant(POWER_W), virtual=True, start_s=10)
        with simulation.lacking(symbol):
            outcome = measured(simulation, 300)
        needed = {"nvmlInit_v2", BY_UUID, *USED_BY_PYTHON}
        assert (outcome.report.total_j is None) == (symbol in needed)
        if symbol in needed:
            return
        assert outcome.report.coverage == pytest.approx(1)
        assert outcome.error_j() <= outcome.bound_j
        (gpu,) = outcome.report.devices
        assert gpu.sensors == LEFT.get(symbol, ("power samples", "energy counter"))
        lacking = {name for name, reason in gpu.reasons.items() if "symbol missing in this driver" in reason}
        assert lacking == LACKING.get(symbol, set())

    def test_all_of_them_leave_nothing_to_measure(self, simulated: Simulated) -> None:
        simulation = simulated(Constant(POWER_W), virtual=True, start_s=10)
        with simulation.lacking(*sorted({*USED, *USED_BY_PYTHON})):
            outcome = measured(simulation, 100)
        assert outcome.report.total_j is None
        assert len(outcome.report.warnings) == 1

    @pytest.mark.parametrize("symbol", sorted(USED))
    def test_a_stub_that_says_so_is_as_good_as_none(self, simulated: Simulated, symbol: str) -> None:
        outcome = measured(
            simulated(Constant(POWER_W), virtual=True, start_s=10, faults=[MissingSymbol(symbol)]), steps=200
        )
        assert (outcome.report.total_j is None) == (symbol in {"nvmlInit_v2", BY_UUID})
        if outcome.report.total_j is not None:
            assert outcome.report.devices[0].sensors == LEFT.get(symbol, ("power samples", "energy counter"))


def test_a_library_of_another_version_than_the_driver_says_what_to_do(simulated: Simulated) -> None:
    outcome = measured(simulated(Constant(POWER_W), virtual=True, faults=[DriverMismatch()]), 50)
    assert outcome.report.total_j is None
    (said,) = outcome.report.warnings
    assert "reboot, or reload the driver's kernel modules" in said
    assert outcome.report.missing["total_j"] == said


class TestAnothersShutdown:
    """Other code in the process calls nvmlShutdown once too often: NVML is closed for us, too."""

    def test_costs_nothing_and_is_said_once(self, simulated: Simulated) -> None:
        simulation = simulated(Constant(POWER_W), virtual=True, start_s=10)

        def between(number: int) -> None:
            if number in {100, 130, 300}:
                shut_down()

        outcome = measured(simulation, between=between)
        assert outcome.says("was shut down by other code") == 1
        assert outcome.report.coverage == pytest.approx(1)
        assert outcome.error_j() <= outcome.bound_j < 0.002 * outcome.true_j

    def test_leaves_every_gpu_measured(self, simulated: Simulated) -> None:
        simulation = simulated([Constant(200), Constant(400)], virtual=True, start_s=10)
        outcome = measured(simulation, between=lambda number: shut_down() if number == 100 else None)
        assert outcome.report.coverage == pytest.approx(1)
        assert outcome.error_j() <= outcome.bound_j

    def test_and_a_pair_of_its_own_changes_nothing(self, simulated: Simulated) -> None:
        simulation = simulated(Constant(POWER_W), virtual=True, start_s=10)

        def between(number: int) -> None:
            pynvml.nvmlInit()
            pynvml.nvmlShutdown()

        assert measured(simulation, 100, between=between).report.warnings == ()

    def test_the_meter_shuts_down_no_more_than_it_opened(self, simulated: Simulated) -> None:
        simulation = simulated(Constant(POWER_W), virtual=True, start_s=10)
        pynvml.nvmlInit()
        measured(simulation, 100)
        assert pynvml.nvmlDeviceGetCount() == 1
        pynvml.nvmlShutdown()
        with pytest.raises(pynvml.NVMLError_Uninitialized):
            pynvml.nvmlDeviceGetCount()
