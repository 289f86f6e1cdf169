"""The meter on simulated GPUs without an energy counter: which sensors it takes, and how good the joules are."""

from __future__ import annotations

import numpy as np
import pytest
from measuring import POWER_W, Simulated

from energy_plugins import Report
from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.testing import (
    A100,
    H200,
    RTX_4090,
    V100,
    Constant,
    Fault,
    NoCounter,
    NoSampleBuffer,
    NotSupported,
    Profile,
    Script,
    Simulation,
    Square,
)

NO_COUNTER = (NoSampleBuffer(), NoCounter())
NO_AVERAGE = NotSupported("NVML_FI_DEV_POWER_AVERAGE")
NO_INSTANT = NotSupported("NVML_FI_DEV_POWER_INSTANT")
NO_USAGE = NotSupported("nvmlDeviceGetPowerUsage")
NO_FIELDS = NotSupported("nvmlDeviceGetFieldValues")


def measured(simulation: Simulation, meter: EnergyMeter, seconds: float) -> tuple[Report, float]:
    """Return the report of a window of ``seconds``, and its true energy (J)."""
    meter.start()
    start_ns = simulation.clock.now_ns()
    simulation.advance(seconds)
    end_ns = simulation.clock.now_ns()
    meter.stop()
    return meter.report(), simulation.gpus[0].true_energy_j(start_ns, end_ns)


@pytest.mark.parametrize(
    ("profile", "faults", "sensors"),
    [
        (H200, (NoCounter(),), ("power samples",)),
        (V100, NO_COUNTER, ("power usage, every 20 ms",)),
        (H200, NO_COUNTER, ("instant power", "average power")),
        (RTX_4090, (*NO_COUNTER, NO_AVERAGE), ("instant power", "power usage, averaged")),
        (A100, (*NO_COUNTER, NO_INSTANT), ("power usage, instantaneous", "average power")),
        (A100, (*NO_COUNTER, NO_AVERAGE), ("instant power",)),
        (H200, (*NO_COUNTER, NO_INSTANT), ("average power",)),
        (RTX_4090, (*NO_COUNTER, NO_FIELDS), ("power usage, averaged",)),
        (A100, (*NO_COUNTER, NO_FIELDS), ("power usage, instantaneous",)),
        (H200, (NoSampleBuffer(),), ("instant power", "energy counter")),
        (H200, (NoSampleBuffer(), NO_INSTANT), ("average power", "energy counter")),
    ],
)
def test_the_best_sensors_are_taken_and_named(
    simulated: Simulated, profile: Profile, faults: tuple[Fault, ...], sensors: tuple[str, ...]
) -> None:
    simulation = simulated(Constant(POWER_W), virtual=True, profile=profile, faults=faults)
    report, true_j = measured(simulation, EnergyMeter(), 7.3)
    assert report.devices[0].sensors == sensors
    assert not report.devices[0].reasons.keys() & set(sensors)
    assert report.total_j == pytest.approx(true_j, rel=1e-3)
    assert report.coverage == 1


def test_a_sensor_that_is_named_is_used_alone(simulated: Simulated) -> None:
    simulation = simulated(Constant(POWER_W), virtual=True, faults=NO_COUNTER)
    report, _ = measured(simulation, EnergyMeter(power_sensor="instant power"), 7.3)
    assert report.devices[0].sensors == ("instant power",)
    assert (report.error_bound_j or 0) > 0.3 * (report.total_j or 0)


@pytest.mark.parametrize("period_s", [0.01, 0.02, 0.05, 0.1, 0.137, 0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    ("profile", "faults"), [(H200, NO_COUNTER), (RTX_4090, (*NO_COUNTER, NO_AVERAGE))], ids=["H200", "RTX 4090"]
)
def test_waves_are_summed_however_the_snapshot_sees_them(
    simulated: Simulated, profile: Profile, faults: tuple[Fault, ...], period_s: float
) -> None:
    load = Square(profile.idle_w, profile.max_limit_w, period_s, 0.5)
    for seconds in (6.0, 7.77, 9.4):
        simulation = simulated(load, virtual=True, start_s=2.3, profile=profile, faults=faults)
        report, true_j = measured(simulation, EnergyMeter(), seconds)
        assert report.total_j == pytest.approx(true_j, rel=0.03)
        assert abs((report.total_j or 0) - true_j) <= (report.error_bound_j or 0)


@pytest.mark.parametrize("seed", range(10, 22))
def test_a_reading_that_changes_at_the_edges_of_a_load_alone_is_read_at_its_refresh(
    simulated: Simulated, seed: int
) -> None:
    wave = Square(V100.idle_w, V100.max_limit_w, 0.25, 0.5)
    simulation = simulated(wave, virtual=True, seed=seed, profile=V100, faults=NO_COUNTER)
    report, true_j = measured(simulation, EnergyMeter(), 8.0)
    assert report.total_j == pytest.approx(true_j, rel=0.01)
    (power,) = report.power.values()
    assert np.median(np.diff(power["t_s"])) == pytest.approx(V100.power_refresh_s, abs=1e-4)


def test_a_mean_that_fails_leaves_the_snapshot_and_a_wider_bound(simulated: Simulated) -> None:
    simulation = simulated(Constant(POWER_W), virtual=True, faults=NO_COUNTER)
    meter = EnergyMeter().start()
    start_ns = simulation.clock.now_ns()
    simulation.advance(10)
    simulation.gpus[0].inject(NO_AVERAGE)
    with pytest.warns(RuntimeWarning, match="POWER_AVERAGE"):
        simulation.advance(90)
    end_ns = simulation.clock.now_ns()
    meter.stop()
    report, true_j = meter.report(), simulation.gpus[0].true_energy_j(start_ns, end_ns)
    assert report.total_j == pytest.approx(true_j, rel=1e-3)
    assert report.coverage == 1
    assert (report.error_bound_j or 0) > 0.3 * true_j


@pytest.mark.parametrize("ahead_s", [0.025, 0.05, 0.075, 0.1])
@pytest.mark.parametrize("seconds", [8.0, 30.0, 60.0])
def test_a_wave_that_hides_between_snapshots_is_within_the_bound_of_any_sum(
    simulated: Simulated, seconds: float, ahead_s: float
) -> None:
    hidden = Script([(ahead_s, 700.0), *([(0.025, 150.0), (0.075, 700.0)] * 800)], repeat=False)
    simulation = simulated(hidden, virtual=True, start_s=10, faults=(*NO_COUNTER, NO_AVERAGE, NO_USAGE))
    now_ns, true_j = simulation.clock.now_ns, simulation.gpus[0].true_energy_j
    steps_j = 0.0
    with EnergyMeter() as meter:
        opened_ns = now_ns()
        for _ in range(round(2 * seconds)):
            start_ns = now_ns()
            with meter.step():
                simulation.advance(0.49)
            steps_j += true_j(start_ns, now_ns())
            simulation.advance(0.01)
        closed_ns = now_ns()
    report = meter.report()
    assert report.devices[0].sensors == ("instant power",)
    (steps,) = (kind for kind in report.kinds if kind.kind == "step")
    total = (report.total_j, report.error_bound_j, true_j(opened_ns, closed_ns))
    for sum_j, bound_j, truth_j in (total, (steps.energy_j, steps.error_bound_j, steps_j)):
        assert sum_j is not None
        assert bound_j is not None
        assert abs(sum_j - truth_j) <= bound_j <= 1.01 * 0.75 * 700 * seconds


@pytest.mark.parametrize("start_s", [10.0, 10.005, 10.01, 10.015])
def test_a_wave_at_the_rate_of_the_buffer_is_within_its_bound(simulated: Simulated, start_s: float) -> None:
    wave = Script([(0.01, 150.0), (0.01, 700.0)])
    simulation = simulated(wave, virtual=True, start_s=start_s, faults=(NoCounter(),))
    report, true_j = measured(simulation, EnergyMeter(), 30)
    error_j = abs((report.total_j or 0.0) - true_j)
    assert 0.05 * true_j < error_j <= (report.error_bound_j or 0.0) < 0.25 * true_j


def test_spans_add_up_to_the_run(simulated: Simulated) -> None:
    simulation = simulated(Square(100, 700, 0.31, 0.5), virtual=True, start_s=2.3, faults=NO_COUNTER)
    meter = EnergyMeter().start()
    for _ in range(80):
        with meter.step():
            simulation.advance(0.3)
        simulation.advance(0.07)
    meter.stop()
    report = meter.report()
    assert sum(total.energy_j or 0 for total in report.kinds) == pytest.approx(report.total_j)
