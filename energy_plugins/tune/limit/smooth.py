"""A smooth curve and a slow drift from noisy windows, with the error of both: the statistics of a search. Pure.

A window's value is ``curve(lowered) + drift(when) + noise``. Both are taken to be smooth: cubic smoothing splines in
their Bayesian form (Wahba, "Improper priors, spline smoothing and the problem of guarding against model errors in
regression", J. R. Stat. Soc. B 40, 1978), whose slope wanders as in Brownian motion. So what is known between two
windows, and how well, follows from how far apart they are and from their own errors, and the windows at the reference
pin the drift.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Prior:
    """What a smooth curve may do before anything is measured; it is 0 at 0."""

    slope: float
    """Standard deviation of the slope at 0."""
    roughness: float
    """Standard deviation of the slope's change over a length of 1."""

    def covariance(self, left: Array, right: Array) -> Array:
        """Return how the curve's values at ``left`` and ``right`` (both >= 0) vary together."""
        a, b = np.meshgrid(left, right, indexing="ij")
        near, far = np.minimum(a, b), np.maximum(a, b)
        return np.asarray(self.slope**2 * a * b + self.roughness**2 * near**2 * (3 * far - near) / 6)

    def variance(self, at: Array) -> Array:
        """Return the variances of the curve's values."""
        return self.slope**2 * at**2 + self.roughness**2 * at**3 / 3


CURVE = Prior(slope=2.0, roughness=1.5)
"""The logarithm of time, energy or power against the share by which a limit is lowered. On H100s (arXiv:2603.16164
table 4, arXiv:2604.11391 figures 6b and 9b) log time has a slope of 0.2 at the default limit, 0.4 at three quarters and
2 below half of it. It changes by 0.15 to 1.4 in a seventh of the limit: a roughness of 0.4 to 3.7."""
DRIFT = Prior(slope=5e-5, roughness=2e-5)
"""The same against seconds: 3 % in ten minutes, and a warm-up of 3 % in two. A GPU that warms up draws some per cent
more at the same speed (leakage); how fast it does is a guess."""
_LEVEL = 0.3
"""Standard deviation of the level against the first window's: wide enough not to matter."""
_ROUNDS = 3
"""In which errors are widened, where windows differ by more than they say."""


@dataclass(frozen=True)
class Smooth:
    """The curve that fits the windows."""

    at: Array
    weights: Array
    root: Array
    """Cholesky's of the windows' covariance."""

    def mean(self, lowered: Array) -> Array:
        """Return the curve's values."""
        return np.asarray(CURVE.covariance(lowered, self.at) @ self.weights)

    def sd(self, lowered: Array) -> Array:
        """Return their standard errors."""
        known = np.linalg.solve(self.root, CURVE.covariance(self.at, lowered))
        return np.asarray(np.sqrt(np.maximum(CURVE.variance(lowered) - np.square(known).sum(axis=0), 0.0)))


def smooth(lowered: Array, when_s: Array, values: Array, errors: Array) -> Smooth:
    """Return the curve through windows.

    Args:
        lowered: by which share the limit was lowered in each, 0 at the reference.
        when_s: when each was made.
        values: what was measured: logarithms.
        errors: their standard errors. Where windows differ by more than these allow, larger ones are used: steps of one
            window are rarely independent, so an error got from their scatter is too small.
    """
    values = values - values[0]
    signal = CURVE.covariance(lowered, lowered) + DRIFT.covariance(when_s, when_s) + _LEVEL**2
    wider = 1.0
    for _ in range(_ROUNDS):
        root = np.linalg.cholesky(signal + np.diag(np.square(wider * errors)))
        whitened = np.linalg.solve(root, values)
        excess = math.sqrt(float(np.mean(np.square(whitened))))
        if excess <= 1 + 2 / math.sqrt(2 * len(values)):  # two standard deviations of that mean's root
            break
        wider *= excess
    return Smooth(lowered, np.linalg.solve(root.T, whitened), root)
