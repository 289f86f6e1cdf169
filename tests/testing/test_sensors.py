"""The sensors behave as recorded on an H200: docs/measuring.md has the figures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pynvml
import pytest

from energy_plugins.testing import Constant, Script, Simulation, Square, Step, random_load

MS = 1_000_000
Simulated = Callable[..., Simulation]
Samples = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]


@pytest.fixture
def simulated(simulated: Simulated) -> Simulated:
    def start(*args: object, **kwargs: object) -> Simulation:
        simulation = simulated(*args, **{"virtual": True, "seed": 1, **kwargs})
        pynvml.nvmlInit()
        return simulation

    return start


def handle(index: int = 0) -> object:
    return pynvml.nvmlDeviceGetHandleByIndex(index)


def drain(simulation: Simulation, last_us: int = 0) -> Samples:
    """Read the buffer; stamps as monotonic nanoseconds."""
    _, samples = pynvml.nvmlDeviceGetSamples(handle(), pynvml.NVML_TOTAL_POWER_SAMPLES, last_us)
    offset_ns = simulation.clock.wall_ns() - simulation.clock.now_ns()
    stamps_ns = np.array([sample.timeStamp * 1000 - offset_ns for sample in samples], dtype=np.int64)
    return stamps_ns, np.array([sample.sampleValue.uiVal * 1e-3 for sample in samples])


def drain_for(simulation: Simulation, seconds: int) -> Samples:
    offset_ns = simulation.clock.wall_ns() - simulation.clock.now_ns()
    parts: list[Samples] = [drain(simulation)]
    for _ in range(seconds):
        simulation.advance(1.0)
        parts.append(drain(simulation, int(parts[-1][0][-1] + offset_ns) // 1000))
    return np.concatenate([t for t, _ in parts]), np.concatenate([p for _, p in parts])


def expected_power_w(load: Script, stamps_ns: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Dead time and low-pass by brute force, on a grid of 20 us."""
    step_s = 2e-5
    grid_s = np.arange(0.0, 0.25, step_s) + step_s / 2
    weights = np.exp(-grid_s / 0.012)
    weights /= weights.sum()
    ends_s = np.cumsum([duration_s for duration_s, _ in load.pieces])
    powers_w = np.array([power_w for _, power_w in load.pieces])
    at_s = stamps_ns[:, None] * 1e-9 - 0.005 - grid_s[None, :]
    return np.asarray(powers_w[np.searchsorted(ends_s, at_s % ends_s[-1], side="right") % len(powers_w)] @ weights)


@pytest.mark.parametrize("seed", range(6))
def test_a_sample_is_the_power_through_dead_time_and_low_pass(simulated: Simulated, seed: int) -> None:
    load = random_load(np.random.default_rng(seed), 4.0)
    simulation = simulated(load)
    simulation.advance(5.0)
    stamps_ns, power_w = drain(simulation)
    error = power_w / expected_power_w(load, stamps_ns) - 1.0
    assert np.abs(error).max() < 0.015
    assert error.std() == pytest.approx(0.003, rel=0.4)


def test_stamps_jitter_as_recorded_and_never_cross(simulated: Simulated) -> None:
    simulation = simulated(Constant(300))
    stamps_ns, _ = drain_for(simulation, 120)
    gaps_ms = np.diff(stamps_ns) / MS
    assert gaps_ms.min() > 0
    assert np.mean(gaps_ms) == pytest.approx(20.0, abs=0.05)
    assert np.percentile(gaps_ms, [1, 10, 90, 99]) == pytest.approx([9, 16, 24, 36], abs=1.2)


def test_the_buffer_is_120_deep_and_late_by_one_to_two_tenths(simulated: Simulated) -> None:
    simulation = simulated(Constant(300))
    ages_ms = []
    for _ in range(50):
        simulation.advance(0.137)
        stamps_ns, _ = drain(simulation)
        assert len(stamps_ns) == 120
        ages_ms.append((simulation.clock.now_ns() - stamps_ns[-1]) / MS)
    assert min(ages_ms) >= 100
    assert max(ages_ms) <= 240


def test_nothing_newer_is_not_found(simulated: Simulated) -> None:
    simulation = simulated(Constant(300))
    with pytest.raises(pynvml.NVMLError) as error:
        drain(simulation, simulation.clock.wall_ns() // 1000)
    assert error.value.value == pynvml.NVML_ERROR_NOT_FOUND


def test_reading_again_gives_the_same(simulated: Simulated) -> None:
    simulation = simulated(Square(130, 700, 0.05))
    simulation.advance(3.0)
    first, second = drain(simulation), drain(simulation)
    common = np.intersect1d(first[0], second[0])
    assert len(common) >= 115
    assert np.array_equal(first[1][np.isin(first[0], common)], second[1][np.isin(second[0], common)])


def test_a_step_of_load_is_visible_in_the_samples_within_20_ms(simulated: Simulated) -> None:
    simulation = simulated(Step(120, 700, at_s=2.0))
    simulation.advance(3.0)
    stamps_ns, power_w = drain(simulation)
    risen = stamps_ns[power_w > 410]
    assert 2000 <= risen[0] / MS <= 2035
    assert power_w[stamps_ns < 2003 * MS].max() < 125


def test_a_fast_square_wave_is_blurred_but_not_flat(simulated: Simulated) -> None:
    """The low-pass leaves a ripple of 570 W x tanh(5 / 22) of a 10 ms wave."""
    simulation = simulated(Square(130, 700, 0.01))
    _, power_w = drain_for(simulation, 10)
    assert 100 < power_w.max() - power_w.min() < 160
    assert power_w.min() > 340
    assert power_w.max() < 500


def test_the_counter_refreshes_every_100_ms_and_is_exact_then(simulated: Simulated) -> None:
    simulation = simulated(Square(130, 700, 0.037))
    true_mj = partial(lambda gpu, t_ns: gpu.true_energy_j(0, t_ns) * 1e3, simulation.gpus[0])
    reads = []
    while (before_ns := simulation.clock.now_ns()) < 3_000 * MS:
        value_mj = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle())
        reads.append((before_ns, simulation.clock.now_ns(), value_mj))
    # Each refresh happened between the start of the last read of the old value and the end of the first of the new.
    edges = [(old[0], new[1], new[2]) for old, new in pairwise(reads) if new[2] != old[2]]
    middles_ms = [(first_ns + last_ns) / 2 / MS for first_ns, last_ns, _ in edges]
    assert np.diff(middles_ms) == pytest.approx(100, abs=45)
    assert (middles_ms[-1] - middles_ms[0]) / (len(edges) - 1) == pytest.approx(100, abs=2)
    # One constant, what the counter showed at time zero, explains all of them to a millijoule.
    lowest_mj = max(value_mj - true_mj(last_ns) for _, last_ns, value_mj in edges)
    highest_mj = min(value_mj - true_mj(first_ns) for first_ns, _, value_mj in edges)
    assert lowest_mj <= highest_mj + 1


def test_phases_differ_between_gpus_and_seeds(simulated: Simulated) -> None:
    simulation = simulated(Constant(300), count=4)
    simulation.advance(1.0)
    assert len({pynvml.nvmlDeviceGetTotalEnergyConsumption(handle(i)) for i in range(4)}) == 4
    other = simulated(Constant(300), seed=2)
    assert other.gpus[0].uuid != simulation.gpus[0].uuid


def test_a_counter_read_costs_3_ms_at_the_median_and_16_at_the_99th_percentile(simulated: Simulated) -> None:
    simulation = simulated(Constant(300))
    costs_ms = []
    for _ in range(3000):
        before_ns = simulation.clock.now_ns()
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle())
        costs_ms.append((simulation.clock.now_ns() - before_ns) / MS)
    assert np.percentile(costs_ms, [50, 99]) == pytest.approx([3, 16], rel=0.15)


def test_a_drain_costs_half_a_millisecond_and_more_beside_heavy_copies(simulated: Simulated) -> None:
    simulation = simulated(Constant(300))
    simulation.advance(1.0)

    def cost_ms() -> float:
        before_ns = simulation.clock.now_ns()
        drain(simulation)
        return (simulation.clock.now_ns() - before_ns) / MS

    assert cost_ms() == pytest.approx(0.5, abs=0.01)
    simulation.gpus[0].launch(bytes=1e12)
    assert cost_ms() == pytest.approx(1.5, abs=0.01)


def test_power_usage_is_the_mean_of_the_last_second(simulated: Simulated) -> None:
    simulation = simulated(Step(100, 700, at_s=10.0))
    simulation.advance(10.55)
    assert 100 + 600 * 0.42 <= pynvml.nvmlDeviceGetPowerUsage(handle()) * 1e-3 <= 100 + 600 * 0.55
    simulation.advance(1.0)
    assert pynvml.nvmlDeviceGetPowerUsage(handle()) == 700_000


def test_instant_power_is_a_window_of_25_ms(simulated: Simulated) -> None:
    simulation = simulated(Step(100, 700, at_s=10.0))
    simulation.advance(10.24)
    values = pynvml.nvmlDeviceGetFieldValues(
        handle(), [pynvml.NVML_FI_DEV_POWER_INSTANT, pynvml.NVML_FI_DEV_POWER_AVERAGE, 9999]
    )
    assert values[0].value.uiVal == 700_000
    assert values[1].value.uiVal < 300_000
    assert values[2].nvmlReturn == pynvml.NVML_ERROR_NOT_SUPPORTED
