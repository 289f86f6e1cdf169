"""What is known of every limit that may be chosen, from the windows so far. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from energy_plugins.tune.limit.measurement import Measurement, Window, with_host
from energy_plugins.tune.limit.smooth import Array, smooth
from energy_plugins.tune.limit.task import SURE, Task

LEAST_FALL = 0.02
"""A limit binds if it lowers the drawn power by more than this share: a sensor is off by up to 1.4 % on an H200. That a
limit holds a GPU back at this moment is another matter, which `control` tells by what the driver says."""


@dataclass(frozen=True)
class Known:
    """One quantity at every candidate: the logarithm of its ratio to the reference, and its standard error."""

    mean: Array
    sd: Array

    @property
    def low(self) -> Array:
        """What it is at least, surely."""
        return self.mean - SURE * self.sd

    @property
    def high(self) -> Array:
        """What it is at most, surely."""
        return self.mean + SURE * self.sd


@dataclass(frozen=True)
class Outlook:
    """All candidates, from the reference (the first) down to the lowest limit tried."""

    limits: Array
    time: Known
    energy: Known
    cost: Known
    power: Known

    @property
    def binds(self) -> NDArray[np.bool_]:
        """Whether a limit surely lowers the drawn power; the reference binds nothing by definition."""
        return np.asarray((self.power.mean < -LEAST_FALL) & (self.power.high < 0), dtype=np.bool_)

    def place(self, limit: float) -> int:
        """Return the candidate nearest to ``limit``."""
        return int(np.argmin(np.abs(self.limits - limit)))


def outlook(windows: Sequence[Window], limits: Array, task: Task) -> Outlook:
    """Return what ``windows`` tell of ``limits``; both begin with the reference."""
    reference = limits[0]
    lowered = np.array([(reference - window.limit) / reference for window in windows])
    when_s = np.array([window.middle_s for window in windows])
    raw = [window.measured for window in windows]
    whole = [with_host(one, task.host_power_w) for one in raw]

    def known(values: Sequence[float], errors: Sequence[float]) -> Known:
        fitted = smooth(lowered, when_s, np.log(values), np.array(errors))
        candidates = (reference - limits) / reference
        return Known(fitted.mean(candidates), fitted.sd(candidates))

    costs = [task.objective.cost(one.step_time_s, one.step_energy_j) for one in whole]
    return Outlook(
        limits,
        time=known([one.step_time_s for one in raw], [one.time_error for one in raw]),
        energy=known([one.step_energy_j for one in whole], [one.energy_error for one in whole]),
        cost=known(costs, [task.objective.error(one) for one in whole]),
        power=known([one.drawn_w for one in raw], [one.energy_error for one in raw]),
    )


def can_bind(task: Task, measured: Measurement) -> bool:
    """Return whether any limit (W) that may be tried could bind a GPU that draws so much at the limit found."""
    return task.lowest < (1 - LEAST_FALL) * measured.drawn_w
