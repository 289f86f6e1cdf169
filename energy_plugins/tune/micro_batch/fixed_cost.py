"""What a micro-batch costs whatever its size, fitted to measured sizes: the reason why small ones are dear.

A micro-batch of s samples takes ``max(floor_s, sample_s * s)``: below some size the GPU waits for the host to launch
its kernels, and the time is the same for one sample or many (the roofline of launch-bound work). Meanwhile it draws
``idle_w`` at least, and ``sample_j`` on top for each sample. A step of n micro-batches that make a share of N samples
takes ``n * idle_w * time + sample_j * N`` joules. On the recorded H200 this holds within 10 % from 4 samples to 1024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ALIKE = 0.1
"""Least singular value of time and size, both scaled to 1, at which what each costs can be told apart. Below it errors
of a per cent of the energy become more than a tenth of it."""
_BUSY = 1.5
"""So much longer the largest size takes than the quickest where the GPU was seen busy: a host scatters by a fifth."""
_SEEN = 1.1
"""A floor is there if it keeps the smallest size from being quicker by this; ours, to be beyond the noise of times."""


@dataclass(frozen=True)
class SizeCost:
    """What a micro-batch of one size takes and costs: a step's values over the number of its micro-batches."""

    size: int
    time_s: float
    energy_j: float


@dataclass(frozen=True)
class FixedCost:
    """The fitted curve."""

    floor_s: float
    """The least that a micro-batch takes, however small; 0 if every size took longer."""
    sample_s: float | None
    """What each sample takes where the GPU is kept busy; None if it never was."""
    idle_w: float
    """What is drawn while nothing is worked on; 0 where that cannot be told from the samples' own."""
    sample_j: float
    """What each sample costs on top."""

    @classmethod
    def fit(cls, costs: Sequence[SizeCost]) -> FixedCost | None:
        """Return the curve through measured sizes, None if they are fewer than two."""
        if len(costs) < 2:
            return None
        ordered = sorted(costs, key=lambda cost: cost.size)
        sizes = np.array([cost.size for cost in ordered], float)
        times_s = np.array([cost.time_s for cost in ordered])
        floor_s, sample_s = _times(sizes, times_s)
        energies_j = np.array([cost.energy_j for cost in ordered])
        idle_w, sample_j = _powers(times_s / energies_j, sizes / energies_j)
        return cls(floor_s, sample_s, idle_w, sample_j)

    @property
    def fixed_j(self) -> float:
        """What a micro-batch costs before its first sample."""
        return self.idle_w * self.floor_s

    @property
    def busy_from(self) -> float | None:
        """The size from which the GPU is kept busy, None if it never was."""
        return None if self.sample_s is None else self.floor_s / self.sample_s

    def time_s(self, size: float) -> float:
        """Return what a micro-batch takes; the least it can where the GPU was never seen busy."""
        return max(self.floor_s, (self.sample_s or 0.0) * size)

    def energy_j(self, size: float) -> float:
        """Return what a micro-batch costs; the least it can where the GPU was never seen busy."""
        return self.idle_w * self.time_s(size) + self.sample_j * size

    def step_energy_j(self, size: int, share: int) -> float:
        """Return what an optimizer step of ``share`` samples costs, without the optimizer's own work."""
        return share / size * self.energy_j(size)

    def idle_share(self, size: float) -> float:
        """Return which share of the energy is drawn whether anything is worked on or not."""
        return self.idle_w * self.time_s(size) / self.energy_j(size)


def _times(sizes: NDArray[np.float64], times_s: NDArray[np.float64]) -> tuple[float, float | None]:
    """Return the floor and the time of a sample: the least sum of squares of logarithms over where one takes over."""
    best: tuple[float, float, float | None] = math.inf, 0.0, None
    fewest = 0 if times_s[-1] >= _BUSY * times_s.min() else len(sizes)
    for waiting in range(len(sizes), fewest - 1, -1):
        floor_s = float(np.exp(np.log(times_s[:waiting]).mean())) if waiting else 0.0
        per_sample = times_s[waiting:] / sizes[waiting:]
        sample_s = float(np.exp(np.log(per_sample).mean())) if waiting < len(sizes) else None
        fitted_s = np.maximum(floor_s, (sample_s or 0.0) * sizes)
        off = float(np.square(np.log(fitted_s / times_s)).sum())
        if off < best[0]:
            best = off, floor_s, sample_s
    _, floor_s, sample_s = best
    if sample_s is not None and floor_s < _SEEN * sample_s * sizes[0]:
        return 0.0, float(np.exp(np.log(times_s / sizes).mean()))
    return floor_s, sample_s


def _powers(times: NDArray[np.float64], sizes: NDArray[np.float64]) -> tuple[float, float]:
    """Return what a second and what a sample cost, neither below 0: least squares of relative deviations."""
    columns = np.stack([times, sizes], axis=1)
    scaled = columns / np.linalg.norm(columns, axis=0)
    alone = columns.sum(axis=0) / np.square(columns).sum(axis=0)
    if np.linalg.svd(scaled, compute_uv=False)[-1] < _ALIKE:
        return 0.0, float(alone[1])
    of_second, of_sample = np.linalg.lstsq(columns, np.ones(len(times)), rcond=None)[0].tolist()
    if of_second < 0:
        return 0.0, float(alone[1])
    return (float(alone[0]), 0.0) if of_sample < 0 else (of_second, of_sample)
