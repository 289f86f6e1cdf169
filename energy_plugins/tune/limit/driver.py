"""`search_power_limit`: the search for a power limit, or for a clock in its place, driven by functions that measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from energy_plugins.errors import ConfigError
from energy_plugins.tune.limit.decision import LimitChoice
from energy_plugins.tune.limit.measurement import Measurement
from energy_plugins.tune.limit.objective import Objective, ObjectiveName, objective_of
from energy_plugins.tune.limit.outlook import can_bind
from energy_plugins.tune.limit.search import Done, begin, step
from energy_plugins.tune.limit.task import Task

KnobName = Literal["limit", "clocks", "auto"]
Windows = Callable[[float, float], Measurement]
"""``measure(value, seconds)`` sets a limit (W) or a clock (MHz), measures steps for about so long, and returns what
they took."""


@dataclass(frozen=True, kw_only=True)
class Clocks:
    """Locked SM clocks, for a search that may turn them in place of the power limit."""

    measure: Windows
    """Locks a clock (MHz) under the power limit found, and measures; at the highest one nothing need be locked."""
    range_mhz: tuple[float, float]
    """The lowest clock that may be tried, and the highest of the GPU, against which the slowdown counts."""
    unlocked: bool
    """Whether somebody asserts that nobody has locked them. What is locked cannot be read, so it could not be put back:
    without this word no clock is tried."""
    resolution_mhz: float = 30.0
    """As that of a limit; GPUs take the nearest of their own clocks, 15 MHz apart."""


@dataclass(frozen=True, kw_only=True)
class PowerLimitChoice(LimitChoice):
    """What to set, and what is to be expected of it against the limit found.

    ``limit`` and the limits of ``measurements`` are those of the knob that was searched: MHz if ``clock_mhz`` is not
    None, else watts.
    """

    limit_w: float
    """The power limit; the one found if a clock was searched for."""
    clock_mhz: float | None = None
    """The clock to lock; None if a limit was searched for."""


def search_power_limit(  # noqa: PLR0913 - what may be asked of a search; all but the first by name
    measure: Windows,
    *,
    limits_w: tuple[float, float],
    start_w: float,
    max_slowdown: float = 0.03,
    objective: ObjectiveName | Objective = "energy",
    resolution_w: float = 5.0,
    budget_s: float | None = None,
    host_power_w: float = 0.0,
    must_bind: bool = False,
    knob: KnobName = "limit",
    clocks: Clocks | None = None,
) -> PowerLimitChoice:
    """Return the limit of least energy, or other cost, whose steps are at most ``max_slowdown`` (3 %) longer.

    Args:
        measure: sets a power limit (W), measures steps for about so long, and returns what they took.
        limits_w: the lowest and highest limit that the GPU allows.
        start_w: the limit found, against which the slowdown counts. None above it is tried, and it is kept unless
            another surely costs less.
        max_slowdown: 0.03 for 3 %; ``math.inf`` for the least cost whatever time it takes.
        objective: "energy", "energy_delay" or a `ZeusCost`. The slowdown is bound whichever it is: for the least
            energy-delay product or Zeus cost of all, pass ``max_slowdown=math.inf`` as well.
        resolution_w: limits that are closer are not told apart on the way down; the choice is a fifth as fine.
        budget_s: the longest that the search may take in all; None for as long as it takes to be sure.
        host_power_w: what the machine draws beside what is measured: slower steps cost it, too.
        must_bind: choose only limits that lower the drawn power. Without it a limit may be chosen that surely costs
            less by the measurements, although it lowers no power; no saving is then expected of it.
        knob: "limit"; "clocks" for a clock in the same way; "auto" for a clock where no limit could bind, because the
            GPU draws less than the lowest, and ``clocks`` says that they are unlocked: else for a limit.
        clocks: which clocks there are and how to try one; ``measure`` is then not called, or for the first window.

    Raises:
        ConfigError: if an argument makes no sense, or clocks are wanted that nobody says are unlocked.
        WindowError: if a window is measured that cannot be.
    """
    limits = Task(
        limits=limits_w,
        start=start_w,
        max_slowdown=max_slowdown,
        objective=objective_of(objective),
        resolution=resolution_w,
        budget_s=budget_s,
        host_power_w=host_power_w,
        must_bind=must_bind,
    )
    free = clocks if _may_turn(knob, clocks) else None
    if free is None:
        return _of_limits(search(measure, limits))
    mhz = replace(limits, limits=free.range_mhz, start=free.range_mhz[1], resolution=free.resolution_mhz)
    if knob == "clocks":
        return _of_clocks(search(free.measure, mhz), start_w)
    _, found = begin(limits)
    first = measure(found.limit, found.seconds)  # nothing is limited beyond what was found, nor locked: one for both
    if can_bind(limits, first):
        return _of_limits(search(measure, limits, first))
    return _of_clocks(search(free.measure, mhz, first), start_w)


def search(measure: Windows, task: Task, first: Measurement | None = None) -> LimitChoice:
    """Return what a search chooses, of power limits or of clocks: the unit is the task's.

    Args:
        measure: tries a value.
        task: what is asked for.
        first: the first window, at the start, if it was measured already.
    """
    state, action = begin(task)
    measured = first or measure(action.limit, action.seconds)
    while True:
        state, following = step(state, measured)
        if isinstance(following, Done):
            return following.choice
        measured = measure(following.limit, following.seconds)


def _may_turn(knob: KnobName, clocks: Clocks | None) -> bool:
    """Return whether clocks may be turned."""
    if knob not in get_args(KnobName):
        names = ", ".join(map(repr, get_args(KnobName)))
        raise ConfigError(f"knob is {knob!r}, but must be one of {names}")
    allowed = clocks is not None and clocks.unlocked
    if knob == "clocks" and not allowed:
        raise ConfigError(
            "knob is 'clocks', but nobody says that the clocks are unlocked, and locked ones could not be put back: "
            "pass clocks=Clocks(..., unlocked=True) if nobody has locked them, or search for a limit"
        )
    return allowed and knob != "limit"


def _of_limits(choice: LimitChoice) -> PowerLimitChoice:
    return PowerLimitChoice(**vars(choice), limit_w=choice.limit)


def _of_clocks(choice: LimitChoice, found_w: float) -> PowerLimitChoice:
    return PowerLimitChoice(**vars(choice), limit_w=found_w, clock_mhz=choice.limit)
