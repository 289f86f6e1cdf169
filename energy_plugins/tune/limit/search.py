"""A search as a pure function: ``step(state, measurement) -> (state, action)``.

It knows no clock, no device and no chance: whoever drives it sets the limit of an action, measures a window, and hands
back what was measured. Equal measurements give equal choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from energy_plugins.tune.limit.decision import LimitChoice, choose, next_limit
from energy_plugins.tune.limit.measurement import Measurement, Window
from energy_plugins.tune.limit.outlook import Outlook, outlook
from energy_plugins.tune.limit.task import Task

WINDOW_S = 5.0
"""Windows of power readings are stable from here on."""
REFERENCE = 1.5
"""A window at the reference is longer by this: it makes no step slower, and saves windows that do."""
_LOOK_S = 2.5
"""The first window at a limit, which may be far too slow; below 2 s windows are noisy."""
_LONGEST_S = 60.0
"""Between two windows at the reference it may drift."""
_PARTS = 8
"""Into about as many windows the time is divided that a limit's slowdown takes to be known. Ours: each costs a change
of the limit, and after each it is asked anew whether this limit is worth knowing."""
_MOST_WINDOWS = 200
"""Where noise is so large that nothing is ever decided, the search ends all the same."""


@dataclass(frozen=True)
class Measure:
    """Set the limit, leave a moment for it to settle, and measure steps for about so long."""

    limit: float
    seconds: float


@dataclass(frozen=True)
class Done:
    """The search is over."""

    choice: LimitChoice


Action = Measure | Done


@dataclass(frozen=True)
class LimitSearch:
    """The state of a search: what is asked for, what was measured, and what is being measured."""

    task: Task
    pending: Measure
    windows: tuple[Window, ...] = ()
    spent_s: float = 0.0


def begin(task: Task) -> tuple[LimitSearch, Measure]:
    """Return the state of a new search, and what to measure first."""
    first = Measure(task.start, WINDOW_S)
    return LimitSearch(task, first), first


def step(state: LimitSearch, measured: Measurement) -> tuple[LimitSearch, Action]:
    """Return the state after ``measured``, the answer to the last action, and what to do next.

    Every window under another limit lies between two at the reference, so that drift cancels.
    """
    task, asked = state.task, state.pending
    seconds = max(asked.seconds, measured.step_time_s)
    window = Window(asked.limit, state.spent_s + seconds / 2, seconds, measured)
    state = replace(state, windows=(*state.windows, window), spent_s=state.spent_s + seconds)
    if asked.limit != task.start:
        return _measuring(state, Measure(task.start, REFERENCE * asked.seconds))
    view = _view(task, state.windows)
    limit = next_limit(task, state.windows, view)
    if limit is not None:
        following = Measure(limit, _seconds(state, limit))
        if _affordable(state, following):
            return _measuring(state, following)
    return state, Done(choose(task, state.windows, view))


def chosen(task: Task, windows: Sequence[Window]) -> LimitChoice:
    """Return what a search for ``task`` would choose if it ended after these windows, the first at its start limit."""
    return choose(task, windows, _view(task, windows))


def _view(task: Task, windows: Sequence[Window]) -> Outlook:
    return outlook(windows, task.candidates(min(one.limit for one in windows)), task)


def _measuring(state: LimitSearch, action: Measure) -> tuple[LimitSearch, Action]:
    return replace(state, pending=action), action


def _seconds(state: LimitSearch, limit: float) -> float:
    """Return how long to measure: short at first, longer where windows are noisy."""
    last = state.windows[-1]
    needed = last.seconds * (max(last.measured.time_error, last.measured.energy_error) / state.task.known) ** 2
    seconds = min(max(needed / _PARTS, WINDOW_S), _LONGEST_S)
    is_new = all(abs(window.limit - limit) >= state.task.resolution for window in state.windows)
    return max(seconds / 2, _LOOK_S) if is_new else seconds


def _affordable(state: LimitSearch, following: Measure) -> bool:
    """Return whether there is time for a window and the one at the reference after it."""
    if len(state.windows) >= _MOST_WINDOWS:
        return False
    budget_s = state.task.budget_s
    return budget_s is None or state.spent_s + (1 + REFERENCE) * following.seconds <= budget_s
