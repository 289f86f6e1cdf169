"""Asynchronous successive halving in joules: at each rung, a number of joules, only the best share of trials goes on.

A rung in epochs gives a costly configuration more energy to show itself than a cheap one; a rung in joules lets the
cheap one train for more epochs first. A trial is judged at once, against those that have come to the rung before it
(Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020), so nobody waits for anybody.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Final

from energy_plugins.errors import ConfigError

REDUCTION_FACTOR: Final = 2
"""One in so many goes on from a rung to the next, which is so many times as high.

Of 2 and 3 the better one where some tens of trials share a budget of joules (`benchmarks/sweep_traces.py`); the paper
has 4, for thousands of trials."""


@dataclass(frozen=True)
class Told:
    """What a trial tells: a metric, and what it has drawn until then."""

    energy_j: float
    value: float


@dataclass(frozen=True)
class Rungs:
    """Joules at which trials are judged: ``first_j``, and ``reduction_factor`` times as many at each rung after it.

    Raises:
        ConfigError: the first rung is no positive, finite number of joules, or fewer than half were to be stopped.
    """

    first_j: float
    reduction_factor: int = REDUCTION_FACTOR

    def __post_init__(self) -> None:
        if isinstance(self.first_j, bool) or not 0 < self.first_j < math.inf:
            raise ConfigError(f"the first rung is at {self.first_j!r} J: give a positive, finite number of joules")
        if isinstance(self.reduction_factor, bool) or self.reduction_factor < 2 or self.reduction_factor % 1:
            raise ConfigError(
                f"reduction_factor is {self.reduction_factor!r}: one in 2, 3 or more goes on, a whole number"
            )

    def energy_j(self, rung: int) -> float:
        """Return the joules of a rung; the first is number 0."""
        return self.first_j * float(self.reduction_factor) ** rung

    def passed(self, before_j: float, now_j: float) -> Sequence[int]:
        """Return the rungs above ``before_j`` and not above ``now_j``."""
        reached = takewhile(lambda rung: self.energy_j(rung) <= now_j, count())
        return [rung for rung in reached if self.energy_j(rung) > before_j]


def value_at(energy_j: float, before: Told | None, now: Told) -> float:
    """Return the metric of a trial at a rung that it passed since it told something ``before``.

    On the straight line between both: trials report at different joules, and one that reports late would else be judged
    by what it has drawn beyond the rung. One that told nothing before is judged by what it tells ``now``.
    """
    if before is None or not math.isfinite(before.value) or now.energy_j <= before.energy_j:
        return now.value
    share = (energy_j - before.energy_j) / (now.energy_j - before.energy_j)
    return before.value + min(max(share, 0.0), 1.0) * (now.value - before.value)


def goes_on(value: float, others: Sequence[float], *, reduction_factor: int = REDUCTION_FACTOR, maximize: bool) -> bool:
    """Tell whether a trial is promoted to the next rung, or stopped.

    It goes on if it is among the best ``1 / reduction_factor`` of those that have been at this rung, itself included;
    while these are too few, if it is the best of them. NaN goes on nowhere, and counts as nobody's value.

    Args:
        value: its metric at the rung.
        others: those of the trials that were there before it.
        reduction_factor: one in so many goes on.
        maximize: whether more is better.
    """
    if math.isnan(value):
        return False
    sign = -1.0 if maximize else 1.0
    costs = [sign * other for other in (*others, value) if not math.isnan(other)]
    allowed = max(len(costs) // reduction_factor, 1)
    return sign * value <= heapq.nsmallest(allowed, costs)[-1]
