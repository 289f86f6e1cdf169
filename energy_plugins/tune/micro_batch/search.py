"""`search_micro_batch`, and the search as a pure function: ``step(state, outcome) -> (state, action)``.

It knows no clock, no device and no chance: whoever drives it runs steps with the micro-batch of an action and hands
back what was measured, or why nothing was. Equal outcomes give equal choices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from energy_plugins.errors import WindowError
from energy_plugins.tune.limit.measurement import Measurement
from energy_plugins.tune.micro_batch.choice import MicroBatchChoice, choose
from energy_plugins.tune.micro_batch.decision import next_size, open_sizes
from energy_plugins.tune.micro_batch.outlook import reference_of, size_outlook
from energy_plugins.tune.micro_batch.sizes import Memory, candidates
from energy_plugins.tune.micro_batch.task import (
    BUDGET_S,
    Action,
    MicroBatchTask,
    Outcome,
    OutOfMemory,
    Refused,
    SizeWindow,
)
from energy_plugins.tune.micro_batch.tried_size import TriedSize

__all__ = [
    "Action",
    "Done",
    "Memory",
    "MicroBatchChoice",
    "MicroBatchSearch",
    "MicroBatchTask",
    "OutOfMemory",
    "Outcome",
    "Refused",
    "SizeWindow",
    "TriedSize",
    "begin",
    "candidates",
    "search_micro_batch",
    "step",
]

WINDOW_S = 5.0
"""Windows of power readings are stable from here on."""
_LOOK_S = 2.5
"""The first window at a size, and those at the reference: below 2 s windows are noisy."""
_PLANNED = 0.93
"""Share of the budget that is planned for: steps take longer than they were measured to."""
_BETWEEN = 2
"""Windows between two at the reference, so that drift cancels."""

Measure = Callable[[int, float], Outcome]
"""``measure(size, seconds)`` runs steps with a micro-batch for about so long, and returns what an optimizer step took,
or `OutOfMemory`, or `Refused`."""


@dataclass(frozen=True)
class Done:
    """The search is over."""

    choice: MicroBatchChoice


@dataclass(frozen=True)
class MicroBatchSearch:
    """The state of a search: what is asked for, what was measured, what failed, and what is being measured."""

    task: MicroBatchTask
    pending: Action
    windows: tuple[SizeWindow, ...] = ()
    failed: tuple[OutOfMemory | Refused, ...] = ()
    spent_s: float = 0.0
    beside_s: float = 0.0
    """What the last window took beside its steps."""


def begin(task: MicroBatchTask) -> tuple[MicroBatchSearch, Action]:
    """Return the state of a new search, and what to measure first: the user's setting."""
    first = Action(task.start, WINDOW_S, guarded=task.fits is not None and task.start > task.fits)
    return MicroBatchSearch(task, first), first


def step(
    state: MicroBatchSearch, outcome: Outcome, took_s: float | None = None
) -> tuple[MicroBatchSearch, Action | Done]:
    """Return the state after ``outcome``, the answer to the last action, and what to do next.

    Args:
        state: that of the search.
        outcome: what was measured, or why nothing was.
        took_s: how long that took in all, with changing the size and waiting for figures that are late: it counts
            against the budget. None if it took no more than the steps of the window.

    Raises:
        WindowError: if the outcome names another size than the action did.
    """
    state = _told(state, outcome, took_s)
    following = _following(state)
    if following is None:
        return state, Done(choose(state.task, state.windows, state.failed))
    return replace(state, pending=following), following


def search_micro_batch(  # noqa: PLR0913 - what may be asked of a search; most of it by name
    measure: Measure,
    candidates: Sequence[int],
    *,
    start: int,
    share: int,
    budget_s: float | None = None,
    host_power_w: float = 0.0,
    memory: Memory | None = None,
) -> MicroBatchChoice:
    """Return the micro-batch of least energy; of equals the smallest, and the start unless another surely saves.

    Args:
        measure: runs steps with a micro-batch for about so many seconds, and returns what an optimizer step of the same
            effective batch took, or why nothing did.
        candidates: the sizes to try, rising, as `candidates` makes them.
        start: the user's setting, one of them.
        share: samples of an optimizer step on one rank.
        budget_s: the longest that the search may take in all; None for a minute.
        host_power_w: what the machine draws beside what is measured: longer steps cost it, too.
        memory: the model on its device; with it the search knows where activations live.

    Raises:
        ConfigError: if a value makes no sense.
    """
    task = MicroBatchTask(
        start=start,
        candidates=tuple(candidates),
        share=share,
        budget_s=budget_s,
        host_power_w=host_power_w,
        fits=memory.fits(candidates) if memory else None,
        levels=tuple(map(memory.level_of, candidates)) if memory else (),
    )
    state, action = begin(task)
    while True:
        state, following = step(state, measure(action.size, action.seconds))
        if isinstance(following, Done):
            return following.choice
        action = following


def _told(state: MicroBatchSearch, outcome: Outcome, took_s: float | None) -> MicroBatchSearch:
    """Return the state with an outcome in it; what fails, though it ran before, takes its windows with it."""
    asked = state.pending
    if isinstance(outcome, Measurement):
        seconds = _whole_steps(asked.seconds, outcome.step_time_s)
        beside_s = max((took_s or 0.0) - seconds, 0.0)
        window = SizeWindow(asked.size, state.spent_s + beside_s + seconds / 2, seconds, outcome)
        spent_s = state.spent_s + beside_s + seconds
        return replace(state, windows=(*state.windows, window), spent_s=spent_s, beside_s=beside_s)
    if outcome.size != asked.size:
        raise WindowError(f"the answer is about {outcome.size} samples at once, but {asked.size} were asked about")
    failed = (*state.failed, outcome)
    usable = open_sizes(state.task, failed)
    a_step_s = state.windows[-1].measured.step_time_s if state.windows else 0.0
    return replace(
        state,
        failed=failed,
        windows=tuple(window for window in state.windows if window.size in usable),
        spent_s=state.spent_s + (a_step_s if took_s is None else took_s),
    )


def _following(state: MicroBatchSearch) -> Action | None:
    """Return what to measure next, None if enough is known or there is no time."""
    task = state.task
    if any(isinstance(one, Refused) and one.size == task.start for one in state.failed):
        return None
    if not state.windows:
        below = [size for size in open_sizes(task, state.failed) if size < task.start]
        return _affordable(state, below[-1], WINDOW_S) if below else None
    sizes = [window.size for window in state.windows]
    reference = reference_of(task, sizes)
    if reference not in sizes[-_BETWEEN:]:
        return _affordable(state, reference, _LOOK_S)
    wanted = next_size(task, state.failed, size_outlook(task, state.windows))
    if wanted is None:
        return None
    size, is_new = wanted
    return _affordable(state, size, _LOOK_S if is_new else WINDOW_S)


def _affordable(state: MicroBatchSearch, size: int, seconds: float) -> Action | None:
    """Return an action that there is time for, a shorter one if need be."""
    left_s = _PLANNED * (state.task.budget_s or BUDGET_S) - state.spent_s - state.beside_s
    step_s = max((window.measured.step_time_s for window in state.windows), default=0.0)
    seconds = min(seconds, left_s - step_s)  # what is begun is ended: it takes up to a step longer
    if seconds < _LOOK_S:
        return None
    fits = state.task.fits
    largest = max((window.size for window in state.windows), default=0)
    return Action(size, seconds, guarded=size > (largest if fits is None else max(fits, largest)))


def _whole_steps(seconds: float, step_s: float) -> float:
    """Return how long as many steps take as are needed for so long."""
    return max(math.ceil(seconds / step_s), 1) * step_s
