"""Trainings with a micro-batch, for tests of its search: what a step takes is a formula, so the best size is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from energy_plugins.tune import Measurement, OutOfMemory, Refused


@dataclass(frozen=True)
class Model:
    """What a micro-batch costs on a GPU: it waits for the host below a size, and leaves a cache above another."""

    floor_s: float = 0.02
    sample_s: float = 2e-4
    idle_w: float = 130.0
    sample_j: float = 0.1
    spill_from: float = math.inf
    spill_per_decade: float = 3.0

    def time_s(self, size: int) -> float:
        return max(self.floor_s, self.sample_s * size)

    def sample_energy_j(self, size: int) -> float:
        """Return the energy of a sample."""
        spilled = math.pow(max(size / self.spill_from, 1.0), math.log10(self.spill_per_decade))
        return (self.idle_w * self.time_s(size) / size + self.sample_j) * spilled

    def sample_time_s(self, size: int) -> float:
        return self.time_s(size) / size

    def best(self, sizes: tuple[int, ...]) -> int:
        """Return the size of least energy."""
        return min(sizes, key=self.sample_energy_j)


@dataclass
class BatchTraining:
    """A training of such a model; ``drift`` is by how much all steps cost more after so many seconds."""

    model: Model
    share: int
    noise: float = 0.0
    """Of a window of 5 s."""
    seed: int = 0
    fits: float = math.inf
    """The largest size that does."""
    refused: tuple[int, ...] = ()
    drift: Callable[[float], float] = lambda _: 0.0
    asked: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.now_s = 0.0
        self.rng = np.random.default_rng(self.seed)

    def measure(self, size: int, seconds: float) -> Measurement | OutOfMemory | Refused:
        """Train for so long with a micro-batch, in whole steps."""
        self.asked.append((size, seconds))
        if size > self.fits:
            return OutOfMemory(size)
        if size in self.refused:
            return Refused(size, "its gradients differ")
        step_s, step_j = self.share * self.model.sample_time_s(size), self.share * self.model.sample_energy_j(size)
        took_s = max(math.ceil(seconds / step_s), 1) * step_s
        error = self.noise * math.sqrt(5.0 / took_s)
        drifted = 1 + self.drift(self.now_s + took_s / 2)
        self.now_s += took_s
        of_time, of_energy = (1 + error * self.rng.normal(size=2)).tolist()
        return Measurement(
            step_time_s=step_s * of_time,
            step_energy_j=step_j * drifted * of_energy,
            step_time_sem=step_s * error,
            step_energy_sem=step_j * error,
            drawn_w=step_j / step_s,
        )
