"""Whether a limit that is remembered still does what it did: from three short windows. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from energy_plugins.training.limits.rank_limits import RankLimits
from energy_plugins.tune import Measurement, Task
from energy_plugins.tune.limit.measurement import with_host
from energy_plugins.tune.limit.outlook import LEAST_FALL


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The limit to keep, and what to expect of it against the limit found."""

    limit: float
    saving: float
    slowdown: float
    confidence: float
    binding: bool
    source: str
    """``search`` or ``memory``."""
    limits: RankLimits | None = None
    """Of each rank, where some have another than ``limit``."""

    @property
    def of_ranks(self) -> RankLimits:
        """The limits of all ranks."""
        return RankLimits(self.limit) if self.limits is None else self.limits


_ENOUGH = 0.8
"""Probability from which on three short windows are believed: the search that found the limit was surer."""


def holds(task: Task, limit: float, measured: Sequence[Measurement]) -> Kept | None:
    """Return ``limit`` if it keeps the slowdown and saves; windows before, at and after it, at the start limit."""
    before, there, after = measured

    def ratio(value: float, first: float, last: float) -> float:
        return math.log(value) - (math.log(first) + math.log(last)) / 2  # drift cancels

    def error(*errors: float) -> float:
        now, first, last = errors
        return math.hypot(now, first / 2, last / 2)

    whole = [with_host(one, task.host_power_w) for one in (there, before, after)]
    costs = [task.objective.cost(one.step_time_s, one.step_energy_j) for one in whole]
    slower = ratio(there.step_time_s, before.step_time_s, after.step_time_s)
    dearer = ratio(costs[0], costs[1], costs[2])
    keeps = _below(task.bound + task.promise - slower, error(*(one.time_error for one in (there, before, after))))
    saves = _below(-dearer, error(*(task.objective.error(one) for one in whole)))
    if limit >= task.start or min(keeps, saves) < _ENOUGH:
        return None
    energies = [one.step_energy_j for one in whole]
    return Kept(
        limit=limit,
        saving=-math.expm1(ratio(energies[0], energies[1], energies[2])),
        slowdown=math.expm1(slower),
        confidence=min(keeps, saves),
        binding=ratio(there.drawn_w, before.drawn_w, after.drawn_w) < -LEAST_FALL,
        source="memory",
    )


def _below(distance: float, sd: float) -> float:
    """Return the probability that a normal variable of mean 0 is below ``distance``."""
    return 0.5 * math.erfc(-distance / (sd * math.sqrt(2)))
