"""What is to be expected at a batch size, from what was seen at others: a random walk over doublings of the batch.

Epochs to a target and joules of an epoch both change with the batch size by factors, the one up and the other down,
and nobody knows where they turn. So the logarithm of either is taken to drift by a usual amount at each doubling, and
to stray from that by as much again and again: between two known sizes it is interpolated, beyond them it is ever less
sure. Drift, straying and scatter are fitted to other workloads (`BatchWalk.fitted`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

LogCurve = Mapping[float, float]
"""A logarithm, by doublings of the batch size from the one that a workload is usually trained with."""

_ANY: Final = 30.0
"""Standard deviation of the level: so wide that it does not matter."""
_LEAST_NOISE: Final = 1e-3


@dataclass(frozen=True)
class Expected:
    """A logarithm and its standard deviation."""

    mean: float
    sd: float


@dataclass(frozen=True)
class BatchWalk:
    """How the logarithm of a quantity changes with the batch size."""

    above: float
    """Its mean change at each doubling above the usual size."""
    below: float
    """Its mean change at each doubling below it."""
    sd: float
    """By how much it strays from that in one doubling."""
    noise: float = 0.0
    """By how much one training scatters around the mean of its size."""

    @classmethod
    def fitted(cls, curves: Sequence[LogCurve], noise: float = 0.0) -> BatchWalk:
        """Return the walk that workloads took; of each the usual size (0 doublings) has to be there."""
        drift = cls(_slope(curves, upward=True), _slope(curves, upward=False), 0.0)
        strayed = [
            (curve[right] - drift.drift(right) - curve[left] + drift.drift(left)) ** 2 / (right - left)
            for curve in curves
            for left, right in pairwise(sorted(curve))
        ]
        return cls(drift.above, drift.below, math.sqrt(sum(strayed) / max(len(strayed), 1)), noise)

    def drift(self, doublings: float) -> float:
        """Return the mean of the logarithm against that of the usual size."""
        return (self.above if doublings > 0 else self.below) * doublings

    def expect(self, doublings: float, known: LogCurve) -> Expected:
        """Return what is to be expected, given what single trainings told at one size at least."""
        at = np.array([*known])
        strayed = np.array([value - self.drift(place) for place, value in known.items()])
        level = float(strayed.mean())
        signal = self._covariance(at, at) + max(self.noise, _LEAST_NOISE) ** 2 * np.eye(len(at))
        here = self._covariance(np.array([doublings]), at)[0]
        gain = np.linalg.solve(signal, here)
        variance = self._covariance(np.array([doublings]), np.array([doublings]))[0, 0] - gain @ here
        return Expected(
            self.drift(doublings) + level + float(gain @ (strayed - level)), math.sqrt(max(float(variance), 0.0))
        )

    def _covariance(self, one: NDArray[np.float64], two: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return that of a walk that sets out both ways from the usual size."""
        same_way = np.sign(one)[:, None] * np.sign(two) > 0
        shared = np.minimum(np.abs(one)[:, None], np.abs(two))
        return np.asarray(_ANY**2 + self.sd**2 * np.where(same_way, shared, 0.0))


def expected_gain(energy: Expected, least: float) -> float:
    """Return by what share of the least energy known a configuration is expected to lower it; 0 if surely not at all.

    The expected improvement of Jones, Schonlau and Welch (1998) for a logarithm that is normal.

    Args:
        energy: the logarithm of the configuration's energy.
        least: the logarithm of the least energy known.
    """
    mean = energy.mean - least
    if energy.sd == 0:
        return max(1 - math.exp(mean), 0.0)
    below = -mean / energy.sd
    gain = _normal(below) - math.exp(mean + energy.sd**2 / 2) * _normal(below - energy.sd)
    return max(gain, 0.0)


def _slope(curves: Sequence[LogCurve], *, upward: bool) -> float:
    """Return the mean slope of curves through the usual size; 0 where none goes that way."""
    slopes = []
    for curve in curves:
        points = [(at, value - curve[0.0]) for at, value in curve.items() if (at > 0 if upward else at < 0)]
        if points:
            slopes.append(sum(at * value for at, value in points) / sum(at * at for at, _ in points))
    return sum(slopes) / len(slopes) if slopes else 0.0


def _normal(at: float) -> float:
    return 0.5 * math.erfc(-at / math.sqrt(2))
