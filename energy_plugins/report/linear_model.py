"""A linear model of a few runs, and the interval of a difference in it.

Where runs were made in rounds, the spread of the residuals counts, as in the paired t test. Elsewhere sides may vary
differently, so the interval is also made with HC2 variances and the degrees of freedom of Bell and McCaffrey (Imbens
and Kolesar, "Robust Standard Errors in Small Samples: Some Practical Advice", 2016, doi:10.1162/REST_a_00552), which
for nothing but two sides is a t test in the manner of Welch; the wider of the two counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from energy_plugins.report.student import t_quantile

Floats: TypeAlias = NDArray[np.float64]

USUAL_SPREAD: Final = 0.01
"""By how much runs of one kind usually differ, to choose a model by; the intervals rest on how they do differ."""
_SEEN = 1e-6
_TINY = 1e-9


@dataclass(frozen=True, kw_only=True)
class Model:
    """One way to tell a difference from the logarithms of what runs drew: a weighted sum of them."""

    columns: Floats
    weights: Floats
    """Of each run in the difference."""
    fitted: tuple[str, ...]
    place_spread: float
    """Standard deviation that offsets of places leave in the difference."""
    slope_spread: float
    """The same of start temperatures."""

    @property
    def allowed_for(self) -> tuple[str, ...]:
        """What the interval is widened for."""
        return (("place",) if self.place_spread else ()) + (("start temperature",) if self.slope_spread else ())

    @property
    def degrees(self) -> int:
        """Degrees of freedom: runs less what is fitted."""
        return len(self.columns) - int(np.linalg.matrix_rank(self.columns))

    def expected_half(self, confidence: float) -> float:
        """Return how wide the interval should become, to choose by what the runs are and not by what they drew."""
        if self.degrees < 1:
            return math.inf
        error = USUAL_SPREAD * float(np.linalg.norm(self.weights))
        return self._widened(t_quantile(confidence, self.degrees) * error, confidence)

    def half(self, logs: Floats, confidence: float) -> float | None:
        """Return half the width of the interval, None if nothing was repeated."""
        if self.degrees < 1:
            return None
        maker = np.eye(len(self.columns)) - self.columns @ np.linalg.pinv(self.columns)
        residuals, left, used = maker @ logs, np.diag(maker), np.abs(self.weights) > _TINY
        pooled = math.sqrt(float(residuals @ residuals) / self.degrees) * float(np.linalg.norm(self.weights))
        half = t_quantile(confidence, self.degrees) * pooled
        # In rounds, what counts is the spread of differences. A run whose own spread is not seen, as the only one of
        # its side, is taken to vary as the others do.
        if "round" not in self.fitted and np.all(left[used] > _SEEN):
            weights, left, maker = self.weights[used], left[used], maker[np.ix_(used, used)]
            robust = math.sqrt(float(np.sum(weights**2 * residuals[used] ** 2 / left)))
            shared = np.outer(weights, weights) * maker / np.sqrt(np.outer(left, left))
            degrees = float(np.sum(weights**2) ** 2 / np.sum(shared**2))
            half = max(half, t_quantile(confidence, degrees) * robust)
        return self._widened(half, confidence)

    def _widened(self, half: float, confidence: float) -> float:
        quantile = NormalDist().inv_cdf((1 + confidence) / 2)
        return math.hypot(half, quantile * self.place_spread, quantile * self.slope_spread)
