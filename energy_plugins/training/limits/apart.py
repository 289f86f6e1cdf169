"""One limit more, for those ranks alone that wait for a slower one: what to search for, and what comes of it. Pure."""

from __future__ import annotations

import math
from dataclasses import replace

from energy_plugins.training.limits.check import Kept
from energy_plugins.training.limits.rank_limits import RankLimits
from energy_plugins.tune import LimitChoice, Task

LONGER = 0.004
"""By which share the limit of those that wait may make steps longer. They have time to spare, so it should by nothing;
but where that begins is known from windows only. With this and its own promise (`Task.promise`) it is 1 % at most in
all but one of the 180 searches of benchmarks/straggler.py, and 1.01 % there."""


def with_reserve(task: Task) -> Task:
    """Return the search for all ranks with so much left of its bound as the one for those that wait may take."""
    bound = task.max_slowdown
    return replace(task, max_slowdown=min(bound, max((1 + bound) / (1 + LONGER) - 1, bound / 2)))


def apart(task: Task, common: Kept, budget_s: float) -> Task:
    """Return the search for those that wait, from the limit that all have; both keep the bound of ``task`` together."""
    left = (1 + task.max_slowdown) / (1 + common.slowdown) - 1
    return replace(
        task,
        limits=(min(task.lowest, common.limit), common.limit),
        start=common.limit,
        max_slowdown=min(max(left, 0.0), LONGER),
        budget_s=budget_s,
    )


def both(common: Kept, choice: LimitChoice, waiting: tuple[int, ...]) -> Kept:
    """Return what to keep, and what is to be expected of both limits together."""
    return Kept(
        limit=common.limit,
        saving=1 - (1 - common.saving) * (1 - choice.expected_saving),
        slowdown=(1 + common.slowdown) * (1 + choice.expected_slowdown) - 1,
        confidence=math.prod((common.confidence, choice.confidence)),
        binding=common.binding or choice.binding,
        source=common.source,
        limits=RankLimits(choice.limit, waiting, common.limit),
    )
