"""How much one size costs against another, from noisy windows under a slow drift: a level for each, with its error.

A window's value is ``level(size) + drift(when) + noise``. Nothing is assumed of how levels of different sizes go
together; the drift is the one of `smooth`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from energy_plugins.tune.limit.smooth import DRIFT, Array

_ANY = 5.0
"""Standard deviation of a level: the logarithm of a factor of 150, so wide that it does not matter."""
_ROUNDS = 3
"""In which errors are widened, where windows of one size differ by more than they say."""


@dataclass(frozen=True)
class Difference:
    """The logarithm of the ratio of two sizes, and its standard error."""

    mean: float
    sd: float

    def under(self, line: float) -> float:
        """Return the probability that it is below ``line``."""
        if self.sd == 0:
            return float(self.mean < line)
        return 0.5 * math.erfc((self.mean - line) / (self.sd * math.sqrt(2)))


@dataclass(frozen=True)
class Levels:
    """The levels of all sizes that were measured."""

    sizes: tuple[int, ...]
    means: Array
    covariance: Array

    def between(self, size: int, other: int) -> Difference:
        """Return by how much ``size`` is above ``other``."""
        if size == other:
            return Difference(0.0, 0.0)
        one, two = self.sizes.index(size), self.sizes.index(other)
        variance = self.covariance[one, one] + self.covariance[two, two] - 2 * self.covariance[one, two]
        return Difference(float(self.means[one] - self.means[two]), math.sqrt(max(float(variance), 0.0)))

    def sd(self, size: int) -> float:
        """Return how badly a size is known by itself."""
        place = self.sizes.index(size)
        return math.sqrt(max(float(self.covariance[place, place]), 0.0))


def levels(sizes: Sequence[int], when_s: Array, seconds: Array, values: Array, errors: Array) -> Levels:
    """Return the levels of windows.

    Args:
        sizes: of each window.
        when_s: when each was made.
        seconds: how long each was.
        values: what was measured: logarithms.
        errors: their standard errors, as the windows say.
    """
    known = tuple(sorted(set(sizes)))
    here = np.equal.outer(np.array(known), np.array(sizes))
    between = _ANY**2 * here.astype(float)
    signal = _ANY**2 * np.equal.outer(sizes, sizes) + DRIFT.covariance(when_s, when_s)
    noise, wider = shared(errors, seconds), 1.0
    free = len(sizes) - len(known)
    centred = values - values.mean()
    for _ in range(_ROUNDS):
        root = np.linalg.cholesky(signal + np.diag(np.square(wider * noise)))
        whitened = np.linalg.solve(root, centred)
        if free == 0:
            break
        excess = math.sqrt(float(np.square(whitened).sum()) / free)
        if excess <= 1 + 2 / math.sqrt(2 * free):  # two standard deviations of that mean's root
            break
        wider *= excess
    gain = np.linalg.solve(root, between.T)
    return Levels(known, gain.T @ whitened, _ANY**2 * np.eye(len(known)) - gain.T @ gain)


def shared(errors: Array, seconds: Array) -> NDArray[np.float64]:
    """Return errors of which half the variance is what all windows say together, for their lengths.

    A window of three long steps says of its error little more than its order of magnitude.
    """
    pooled = np.mean(np.square(errors) * seconds) / seconds
    return np.asarray(np.sqrt((np.square(errors) + pooled) / 2))
