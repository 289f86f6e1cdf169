"""Trainings under limits, for tests of searches: what a step takes is a formula, so the best limit is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from energy_plugins.tune import Measurement


@dataclass(frozen=True)
class Gpu:
    """A GPU that draws ``drawn_w`` if it may; less power above ``idle_w`` makes the part ``bound`` of a step slower."""

    drawn_w: float = 650.0
    idle_w: float = 120.0
    bound: float = 0.6
    steepness: float = 0.5

    def time(self, limit_w: float) -> float:
        """Return a step's time as a share of that without a limit."""
        speed = math.pow(min((limit_w - self.idle_w) / (self.drawn_w - self.idle_w), 1.0), self.steepness)
        return 1 - self.bound + self.bound / speed

    def power_w(self, limit_w: float) -> float:
        """Return what it draws under a limit."""
        return min(limit_w, self.drawn_w)

    def energy(self, limit_w: float) -> float:
        """Return a step's energy in joules, if it takes a second without a limit."""
        return self.time(limit_w) * self.power_w(limit_w)

    def best_w(self, low_w: float, start_w: float, max_slowdown: float) -> float:
        """Return the limit of least energy within a slowdown, in whole watts."""
        allowed = [
            limit_w
            for limit_w in np.arange(low_w, start_w + 1.0).tolist()
            if self.time(limit_w) <= (1 + max_slowdown) * self.time(start_w)
        ]
        return float(min(allowed, key=self.energy))


@dataclass
class Training:
    """A training on such a GPU; ``drift`` is by how much all steps are longer after so many seconds."""

    time: Callable[[float], float]
    power_w: Callable[[float], float]
    noise: float = 0.0
    """Of a window of 5 s."""
    drift: Callable[[float], float] = lambda _: 0.0
    seed: int = 0
    understated: float = 1.0
    asked: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.now_s = 0.0
        self.rng = np.random.default_rng(self.seed)

    def measure(self, limit: float, seconds: float) -> Measurement:
        """Train for so long under a limit."""
        self.asked.append((limit, seconds))
        error = self.noise * math.sqrt(5.0 / seconds)
        drifted = 1 + self.drift(self.now_s + seconds / 2)
        self.now_s += seconds
        time_s = 0.25 * self.time(limit)
        energy_j = time_s * self.power_w(limit)
        time_noise, energy_noise, power_noise = 1 + error * self.rng.normal(size=3)
        return Measurement(
            step_time_s=time_s * drifted * time_noise,
            step_energy_j=energy_j * drifted * energy_noise,
            step_time_sem=time_s * error / self.understated,
            step_energy_sem=energy_j * error / self.understated,
            drawn_w=self.power_w(limit) * power_noise,
        )


def training_on(gpu: Gpu, noise: float = 0.0, seed: int = 0) -> Training:
    """Return a training on a GPU."""
    return Training(gpu.time, gpu.power_w, noise=noise, seed=seed)
