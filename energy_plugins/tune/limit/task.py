"""What a search is asked for, checked when it is asked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from energy_plugins.errors import ConfigError
from energy_plugins.tune.limit.objective import Energy, Objective
from energy_plugins.tune.limit.smooth import Array

SURE = 1.645
"""Standard errors within which a value is on one side with a probability of 95 %."""
_PROMISE = (0.002, 0.005)
"""By how much a slowdown may be beyond its bound in one of twenty searches: half of the bound, but within these."""
_FINER = 5
"""By which the choice is finer than the limits on the way to it."""


def promise_of(max_slowdown: float) -> float:
    """Return by which share a step may be longer than ``max_slowdown`` says in one of twenty searches."""
    least, most = _PROMISE
    return min(max(max_slowdown / 2, least), most)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A search for a limit, of power (W) or of a clock (MHz): the unit is the caller's.

    Raises:
        ConfigError: if a value makes no sense; the message names it and says what to do.
    """

    limits: tuple[float, float]
    """The lowest and highest that the device allows."""
    start: float
    """The limit found, against which the slowdown counts; none above it is tried."""
    max_slowdown: float = 0.03
    """By how much longer a step may take, as a share; ``math.inf`` for any."""
    objective: Objective = field(default_factory=Energy)
    resolution: float = 5.0
    """Limits closer than this are not told apart on the way down; the choice is a fifth as fine."""
    budget_s: float | None = None
    """Seconds of training that the search may take, those at the start limit included."""
    host_power_w: float = 0.0
    """What the machine draws beside what is measured, for as long as a step takes."""
    must_bind: bool = False
    """Choose only limits that lower the drawn power."""

    def __post_init__(self) -> None:
        low, high = self.limits
        if not 0 < low <= high < math.inf:
            raise ConfigError(
                f"the limits are {low!r} to {high!r}, but must be two finite numbers above 0, the lower one first: "
                "pass those that the device allows"
            )
        if not low <= self.start <= high:
            raise ConfigError(
                f"the start is {self.start!r}, outside the limits {low!r} to {high!r}: pass the limit that is in force"
            )
        if not self.max_slowdown > -1:
            raise ConfigError(
                f"max_slowdown is {self.max_slowdown!r}, but must be above -1: 0.03 for steps 3 % longer, "
                "math.inf for any"
            )
        if not 0 < self.resolution < math.inf:
            raise ConfigError(f"the resolution is {self.resolution!r}, but must be finite and above 0, such as 5 W")
        if self.budget_s is not None and not self.budget_s > 0:
            raise ConfigError(f"budget_s is {self.budget_s!r}, but must be above 0, or None for as long as it takes")
        if not 0 <= self.host_power_w < math.inf:
            raise ConfigError(f"host_power_w is {self.host_power_w!r}, but must be finite and at least 0 W")

    @property
    def bound(self) -> float:
        """The logarithm of the longest step against the reference's."""
        return math.log1p(self.max_slowdown)

    @property
    def promise(self) -> float:
        """By which share a step may be longer than the bound in one of twenty searches."""
        return promise_of(self.max_slowdown)

    @property
    def known(self) -> float:
        """The standard error of the slowdown at which that is kept: choices err to both sides of the bound alike."""
        return self.promise / SURE

    @property
    def lowest(self) -> float:
        """The lowest limit that may be tried."""
        return self.limits[0]

    def on_grid(self, limit: float) -> float:
        """Return the limit nearest to ``limit`` that may be tried, always below the start."""
        steps = max(round((self.start - limit) / self.resolution), 1)
        return max(self.start - steps * self.resolution, self.lowest)

    def candidates(self, lowest: float) -> Array:
        """Return what may be chosen, from the start down to ``lowest``."""
        each = self.resolution / _FINER
        count = math.ceil(round((self.start - lowest) / each, 9))
        return np.array([max(self.start - each * place, lowest) for place in range(count + 1)])
