"""The native sampler on simulated GPUs: the same code as on real ones, in virtual and in real time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from energy_plugins import _native
from energy_plugins.testing import GpuLost, Simulation, Square, WallClockStep

S = 1_000_000_000
Simulated = Callable[..., Simulation]


def sampler_of(simulation: Simulation) -> _native.Sampler:
    nvml = _native.Nvml(simulation.nvml_path)
    assert nvml.simulated
    return _native.Sampler(nvml, [gpu.uuid for gpu in simulation.gpus], simulation.clock.native)


def sampled(simulation: Simulation, seconds: float) -> _native.Sampler:
    sampler = sampler_of(simulation)
    sampler.start(threaded=False)
    simulation.clock.attach(sampler.tick)
    simulation.advance(seconds)
    simulation.clock.detach(sampler.tick)
    sampler.stop()
    return sampler


def test_a_virtual_minute_of_sampling_agrees_with_the_truth(simulated: Simulated) -> None:
    simulation = simulated([Square(130, 700, 0.3), Square(200, 300, 2.0)], virtual=True)
    simulation.advance(5.0)
    sampler = sampled(simulation, 60.0)
    assert sampler.take_errors() == []
    for gpu in simulation.gpus:
        power = sampler.power(gpu.index)
        t_ns, power_w = power["t_ns"], power["power_w"]
        energy_j = float(np.sum(power_w[1:] * np.diff(t_ns)) * 1e-9)
        assert len(t_ns) > 2950
        assert energy_j == pytest.approx(gpu.true_energy_j(int(t_ns[0]), int(t_ns[-1])), rel=0.02)


def test_counter_edges_enclose_the_refresh(simulated: Simulated) -> None:
    simulation = simulated(Square(130, 700, 0.037), virtual=True)
    simulation.advance(5.0)
    counter = sampled(simulation, 30.0).counter(0)
    gpu, edge = simulation.gpus[0], counter[counter["edge"] == 1][0]
    last = counter[-1]
    drawn_j = last["energy_j"] - edge["energy_j"]
    least_j = gpu.true_energy_j(int(edge["after_ns"]), int(last["before_ns"]) - S // 10)
    assert least_j - 0.01 <= drawn_j <= gpu.true_energy_j(int(edge["before_ns"]), int(last["after_ns"])) + 0.01


def test_a_wall_clock_stepped_back_does_not_starve_the_samples(simulated: Simulated) -> None:
    simulation = simulated(virtual=True)
    sampler = sampler_of(simulation)
    sampler.start(threaded=False)
    simulation.clock.attach(sampler.tick)
    simulation.advance(5.0)
    simulation.gpus[0].inject(WallClockStep(-3600))
    simulation.advance(10.0)
    t_ns = sampler.power(0)["t_ns"]
    assert simulation.clock.now_ns() - t_ns[-1] < 2 * S
    assert np.diff(t_ns).min() > 0
    sampler.stop()


def test_a_gpu_that_comes_back_is_sampled_again(simulated: Simulated) -> None:
    simulation = simulated(virtual=True, faults=[GpuLost(at_s=5.0, back_s=20.0)])
    sampler = sampled(simulation, 90.0)
    t_ns = sampler.power(0)["t_ns"]
    assert len(sampler.take_errors()) >= 1
    assert np.diff(t_ns).max() > 10 * S
    assert t_ns[-1] > 85 * S


def test_the_thread_samples_in_real_time(simulated: Simulated) -> None:
    simulation = simulated(Square(130, 700, 0.3))
    sampler = sampler_of(simulation)
    sampler.start()
    for _ in range(2):
        sampler.drain_now()
        sampler.wait_drained(2.0)
    sampler.stop()
    assert sampler.take_errors() == []
    assert len(sampler.power(0)) > 0
    assert len(sampler.counter(0)) > 0
