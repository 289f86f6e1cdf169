"""What a search is told: windows of training under one limit, checked as they come."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from energy_plugins.errors import WindowError

LEAST_ERROR = 2e-4
"""No window is known better than this share, whatever it says of itself: one of a few equal steps would say 0."""


@dataclass(frozen=True)
class Measurement:
    """What steps took and drew under one limit, as means over a window, and the standard errors of these means.

    Evaluation, checkpoints, stalls and first steps are no part of it.

    Raises:
        WindowError: if a value is not finite, a time, energy or power not above 0, or an error below 0.
    """

    step_time_s: float
    step_energy_j: float
    """Of all GPUs that work on the step; of the CPU too where that is measured."""
    step_time_sem: float
    """s."""
    step_energy_sem: float
    """J."""
    drawn_w: float
    """Mean power of the GPU that the limit is for; of several, the one that draws most."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            is_error = field.name.endswith("_sem")
            if not math.isfinite(value) or value < 0 or (value == 0 and not is_error):
                wanted = "a finite number of at least 0" if is_error else "a finite number above 0"
                raise WindowError(
                    f"{field.name} is {value!r}, but must be {wanted}: if nothing was measured in a window, leave it "
                    "out and make another"
                )

    @property
    def time_error(self) -> float:
        """Standard error of the time as a share of it."""
        return max(self.step_time_sem / self.step_time_s, LEAST_ERROR)

    @property
    def energy_error(self) -> float:
        """Standard error of the energy as a share of it."""
        return max(self.step_energy_sem / self.step_energy_j, LEAST_ERROR)


@dataclass(frozen=True)
class Window:
    """One window of a search."""

    limit: float
    """In force during it, W or MHz."""
    middle_s: float
    """Its middle, in seconds of windows since the search began."""
    seconds: float
    """How long it was asked to be, or one step if that is longer."""
    measured: Measurement


def of_all_ranks(ranks: Sequence[Measurement], limited: Sequence[int] | None = None) -> Measurement:
    """Return one measurement of a step that several ranks make together.

    The step takes as long as the slowest rank and costs what all of them draw; their errors are independent.

    Args:
        ranks: what each of them measured.
        limited: which of them the limit is for, such as those that wait for a slow one; None for all.

    Raises:
        WindowError: if there are none.
    """
    if not ranks or (limited is not None and not limited):
        raise WindowError("there is no rank's measurement: pass that of each rank, at least one")
    slowest = max(ranks, key=lambda rank: rank.step_time_s)
    return Measurement(
        step_time_s=slowest.step_time_s,
        step_energy_j=math.fsum(rank.step_energy_j for rank in ranks),
        step_time_sem=slowest.step_time_sem,
        step_energy_sem=math.hypot(*(rank.step_energy_sem for rank in ranks)),
        drawn_w=max(ranks[place].drawn_w for place in (limited or range(len(ranks)))),
    )


def with_host(measured: Measurement, host_power_w: float) -> Measurement:
    """Return a measurement with the joules of a machine that draws ``host_power_w`` beside what was measured."""
    return replace(
        measured,
        step_energy_j=measured.step_energy_j + host_power_w * measured.step_time_s,
        step_energy_sem=measured.step_energy_sem + host_power_w * measured.step_time_sem,
    )
