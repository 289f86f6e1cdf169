"""Micro-batch and power limit together: batch first, then limit, then one check of the neighbours. Pure.

The batch comes first because it changes what the GPU draws, and so what a limit does; the limit moves the best batch
little. Whether it did is seen in the end: the next smaller and the next larger size, under the limit found.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from energy_plugins.errors import WindowError
from energy_plugins.tune.beside import best_beside, to_measure
from energy_plugins.tune.joint_choice import JointChoice
from energy_plugins.tune.limit import search
from energy_plugins.tune.limit.decision import LimitChoice
from energy_plugins.tune.limit.measurement import Measurement
from energy_plugins.tune.limit.search import LimitSearch
from energy_plugins.tune.limit.task import Task
from energy_plugins.tune.micro_batch import search as sizes
from energy_plugins.tune.micro_batch.search import (
    MicroBatchChoice,
    MicroBatchSearch,
    MicroBatchTask,
    Outcome,
    SizeWindow,
)


@dataclass(frozen=True)
class Try:
    """Run steps with this micro-batch under this limit, and measure them for about so long."""

    size: int
    limit: float
    seconds: float
    guarded: bool = False
    """Whether the size is not known to fit into memory."""


@dataclass(frozen=True)
class JointDone:
    """Both searches are over."""

    choice: JointChoice


@dataclass(frozen=True)
class Limiting:
    """The second part: the micro-batch is chosen, the limit is searched for."""

    batch: MicroBatchChoice
    search: LimitSearch


@dataclass(frozen=True)
class Checking:
    """The last part: both are chosen, and the neighbours of the micro-batch are measured under the limit."""

    batch: MicroBatchChoice
    limit: LimitChoice
    to_measure: tuple[int, ...]
    windows: tuple[SizeWindow, ...] = ()


@dataclass(frozen=True)
class JointSearch:
    """The state: what is asked for, what is being measured, and the part that the search is in."""

    batch_task: MicroBatchTask
    limit_task: Task
    pending: Try
    part: MicroBatchSearch | Limiting | Checking


def begin(batch: MicroBatchTask, limit: Task) -> tuple[JointSearch, Try]:
    """Return the state of a new search, and what to measure first: both as the user set them."""
    part, action = sizes.begin(batch)
    first = Try(action.size, limit.start, action.seconds, action.guarded)
    return JointSearch(batch, limit, first, part), first


def step(state: JointSearch, outcome: Outcome, took_s: float | None = None) -> tuple[JointSearch, Try | JointDone]:
    """Return the state after ``outcome``, the answer to the last try, and what to do next.

    ``took_s`` is how long the answer took in all, None for no longer than the steps of its window: it counts against
    the budget of the search for the micro-batch.

    Raises:
        WindowError: if a size fails that ran before, once it was chosen; or if an answer is about another size.
    """
    match state.part:
        case MicroBatchSearch() as part:
            searching, action = sizes.step(part, outcome, took_s)
            if isinstance(action, sizes.Action):
                following = Try(action.size, state.limit_task.start, action.seconds, action.guarded)
                return replace(state, part=searching, pending=following), following
            limiting, measure = search.begin(state.limit_task)
            following = Try(action.choice.size, measure.limit, measure.seconds)
            return replace(state, part=Limiting(action.choice, limiting), pending=following), following
        case Limiting(batch, limiting):
            limiting, told = search.step(limiting, _measured(outcome))
            if isinstance(told, search.Measure):
                following = Try(batch.size, told.limit, told.seconds)
                return replace(state, part=Limiting(batch, limiting), pending=following), following
            return _next_check(state, Checking(batch, told.choice, _neighbours(state, batch, told.choice)))
        case Checking() as part:
            return _next_check(state, _checked(part, state.pending, outcome))


def search_jointly(measure: Callable[[int, float, float], Outcome], batch: MicroBatchTask, limit: Task) -> JointChoice:
    """Return the micro-batch and the limit of least energy.

    Args:
        measure: runs steps with a micro-batch under a limit for about so many seconds, and returns what a step took.
        batch: the search for the micro-batch.
        limit: the search for the limit.
    """
    state, action = begin(batch, limit)
    while True:
        state, following = step(state, measure(action.size, action.limit, action.seconds))
        if isinstance(following, JointDone):
            return following.choice
        action = following


def _measured(outcome: Outcome) -> Measurement:
    if not isinstance(outcome, Measurement):
        raise WindowError(f"{outcome.size} samples at once ran before, but now fail: search again without this size")
    return outcome


def _neighbours(state: JointSearch, batch: MicroBatchChoice, limit: LimitChoice) -> tuple[int, ...]:
    """Return what to measure in turn; nothing under the limit found, where all of them were compared."""
    return () if limit.limit == state.limit_task.start else to_measure(batch)


def _checked(part: Checking, asked: Try, outcome: Outcome) -> Checking:
    """Return the check with one window in it; a neighbour that fails is none."""
    left = part.to_measure[1:]
    if not isinstance(outcome, Measurement) and asked.size != part.batch.size:
        return replace(part, to_measure=left)
    now_s = math.fsum(window.seconds for window in part.windows)
    window = SizeWindow(asked.size, now_s + asked.seconds / 2, asked.seconds, _measured(outcome))
    return replace(part, to_measure=left, windows=(*part.windows, window))


def _next_check(state: JointSearch, part: Checking) -> tuple[JointSearch, Try | JointDone]:
    if part.to_measure:
        following = Try(part.to_measure[0], part.limit.limit, sizes.WINDOW_S)
        return replace(state, part=part, pending=following), following
    task, limit = state.limit_task, part.limit
    slack = task.bound + task.promise - math.log1p(limit.expected_slowdown)
    best = best_beside(state.batch_task, part.batch.size, part.windows, slack=slack)
    choice = JointChoice(best.size, limit.limit, part.batch, limit, best.saving)
    return replace(state, part=part), JointDone(choice)
