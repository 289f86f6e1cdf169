"""`search_power_limit`: the search for a power limit, driven by a function that measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from energy_plugins.tune.decision import LimitChoice
from energy_plugins.tune.measurement import Measurement, Window
from energy_plugins.tune.objective import Objective, ObjectiveName, objective_of
from energy_plugins.tune.search import Done, begin, step
from energy_plugins.tune.task import Task


@dataclass(frozen=True)
class PowerLimitChoice:
    """The power limit that a search chose, and what is to be expected of it against the limit found."""

    limit_w: float
    expected_saving: float
    """Share of the energy; 0 where the limit does not bind, whatever was measured."""
    expected_slowdown: float
    """Share by which a step takes longer."""
    confidence: float
    """Probability, by the errors of the windows, that it saves and keeps the bound to within half a per cent
    (half of a bound below 1 %): of the less sure one."""
    binding: bool
    """Whether it lowers the drawn power; never where the limit found is kept."""
    measurements: tuple[Window, ...]
    """All windows, in their order; their limits are in watts."""


def search_power_limit(  # noqa: PLR0913 - what may be asked of a search; all but the first by name
    measure: Callable[[float, float], Measurement],
    *,
    limits_w: tuple[float, float],
    start_w: float,
    max_slowdown: float = 0.03,
    objective: ObjectiveName | Objective = "energy",
    resolution_w: float = 5.0,
    budget_s: float | None = None,
    host_power_w: float = 0.0,
    must_bind: bool = False,
) -> PowerLimitChoice:
    """Return the power limit of least energy whose steps take at most ``1 + max_slowdown`` of those at the limit found.

    Args:
        measure: ``measure(limit_w, seconds)`` sets the limit, measures steps for about so long, and returns what they
            took.
        limits_w: the lowest and highest limit that the GPU allows.
        start_w: the limit found. None above it is tried, and it is kept unless another surely saves.
        max_slowdown: 0.03 for 3 %; ``math.inf`` for the least energy whatever it takes.
        objective: "energy", "energy_delay" or a `ZeusCost`; the slowdown is bound whichever it is.
        resolution_w: limits that are closer are not told apart on the way down; the choice is a fifth as fine.
        budget_s: the longest that the search may take in all; None for as long as it takes to be sure.
        host_power_w: what the machine draws beside what is measured: slower steps cost it, too.
        must_bind: choose only limits that lower the drawn power. Without it a limit may be chosen that surely costs
            less by the measurements, although it lowers no power; no saving is then expected of it.

    Raises:
        ConfigError: if an argument makes no sense.
        WindowError: if ``measure`` returns what cannot be.
    """
    task = Task(
        limits=limits_w,
        start=start_w,
        max_slowdown=max_slowdown,
        objective=objective_of(objective),
        resolution=resolution_w,
        budget_s=budget_s,
        host_power_w=host_power_w,
        must_bind=must_bind,
    )
    choice = search(measure, task)
    return PowerLimitChoice(
        choice.limit,
        choice.expected_saving,
        choice.expected_slowdown,
        choice.confidence,
        binding=choice.binding,
        measurements=choice.measurements,
    )


def search(measure: Callable[[float, float], Measurement], task: Task) -> LimitChoice:
    """Return what a search chooses, of power limits or of clocks: the unit is the task's."""
    state, action = begin(task)
    while True:
        state, following = step(state, measure(action.limit, action.seconds))
        if isinstance(following, Done):
            return following.choice
        action = following
