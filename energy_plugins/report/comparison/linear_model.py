"""A linear model of a few runs, and the interval of a difference in it.

Effects are fixed (sides, rounds, places) or random with a spread that is assumed (what is left). The weights of the
runs are those of generalised least squares, so they cancel fixed effects exactly, and random ones as far as that costs
less than it saves. The variance of a run is estimated from the residuals beside the fixed effects.

Sides may vary differently. With two sides of one size, or runs in rounds, that matters little, as in Student's test.
Elsewhere the interval is also made with HC2 variances and the degrees of freedom of Bell and McCaffrey (Imbens and
Kolesar, "Robust Standard Errors in Small Samples: Some Practical Advice", 2016, doi:10.1162/REST_a_00552), which for
two sides and nothing else is a t test in the manner of Welch; the wider of the two counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from energy_plugins.report.comparison.student import t_quantile

Floats: TypeAlias = NDArray[np.float64]

USUAL_SPREAD: Final = 0.01
"""By how much runs of one kind usually differ, to weigh them; the intervals rest on how they do differ."""
_SEEN = 1e-6
_TINY = 1e-9
_ROUNDING = 1e-9
"""Half the width of an interval of runs that are all alike: what their logarithms differ by is rounding."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """One way to tell a difference from the logarithms of what runs drew."""

    fixed: Floats
    """A column for each fixed effect; a row for each run."""
    random: Floats
    """A column for each random effect: what one standard deviation of it does to each run."""
    wanted: Floats
    """The difference, as a weight for each fixed effect."""
    equal: bool
    """Whether runs may be taken to vary alike."""

    @property
    def degrees(self) -> int:
        """Degrees of freedom: runs less what is fixed."""
        return len(self.fixed) - int(np.linalg.matrix_rank(self.fixed))

    @property
    def weights(self) -> Floats:
        """Of each run in the difference."""
        more = self.random / USUAL_SPREAD
        lower = np.linalg.cholesky(np.eye(len(self.fixed)) + more @ more.T)
        whitened = np.linalg.pinv(np.linalg.solve(lower, self.fixed).T) @ self.wanted
        found: Floats = np.linalg.solve(lower.T, whitened)
        return np.where(np.abs(found) < _TINY, 0.0, found)

    @property
    def can_tell(self) -> bool:
        """Whether the weights leave nothing of other fixed effects in the difference, and its spread is seen."""
        return self.degrees > 0 and np.allclose(self.fixed.T @ self.weights, self.wanted, atol=1e-6)

    def half(self, logs: Floats, confidence: float) -> float | None:
        """Return half the width of the interval, None if nothing was repeated."""
        if self.degrees < 1:
            return None
        weights = self.weights
        maker = np.eye(len(self.fixed)) - self.fixed @ np.linalg.pinv(self.fixed)
        residuals = maker @ logs
        pooled = math.sqrt(float(residuals @ residuals) / self.degrees) * float(np.linalg.norm(weights))
        half = t_quantile(confidence, self.degrees) * pooled
        if not self.equal:
            half = max(half, _robust_half(weights, maker, residuals, confidence))
        half = max(half, _ROUNDING)
        return math.hypot(
            half, NormalDist().inv_cdf((1 + confidence) / 2) * float(np.linalg.norm(weights @ self.random))
        )


def _robust_half(weights: Floats, maker: Floats, residuals: Floats, confidence: float) -> float:
    """Return half the width of an interval for runs that vary differently, 0 if that of one of them is not seen."""
    used = weights != 0.0
    left = np.diag(maker)[used]
    if np.any(left < _SEEN):
        return 0.0  # the only run of its side, for example: it is taken to vary as the others do
    weights, maker = weights[used], maker[np.ix_(used, used)]
    error = math.sqrt(float(np.sum(weights**2 * residuals[used] ** 2 / left)))
    shared = np.outer(weights, weights) * maker / np.sqrt(np.outer(left, left))
    return t_quantile(confidence, float(np.sum(weights**2) ** 2 / np.sum(shared**2))) * error
