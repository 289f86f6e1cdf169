"""What a fit will still cost: joules and seconds to its end, from what its steps cost so far. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from energy_plugins.measure.quantity import quantity
from energy_plugins.units import j_to_kwh

LEAST_STEPS = 10
LEAST_S = 10.0
"""A forecast rests on at least as many steps and as much time, after the first steps seen."""
_RECENT_S = 600.0
_RECENT_SHARE = 0.25
"""What a step cost counts half after ten minutes, or after a quarter of the run so far if that is sooner: the slow
first steps are soon forgotten, and a change of pace is soon followed."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a run has spent until the end of a step, and what of it in its steps."""

    t_s: float
    """That end, since the run began."""
    energy_j: float
    steps: int
    step_s: float
    step_j: float


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What may end a fit, None where there is no such limit. A batch is a step of the report."""

    batches_per_epoch: int | None = None
    epochs: int | None = None
    optimizer_steps: int | None = None
    batches_per_optimizer_step: int | None = 1
    """Gradients are accumulated over as many, and less at an epoch's end; None: the training step itself optimises."""
    seconds_left: float | None = None


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far a fit has come, resumed runs included."""

    epochs: int
    """Those that are over."""
    batches: int
    """Of the present epoch."""
    optimizer_steps: int


def batches_left(limits: Limits, position: Position) -> int | None:
    """Return how many batches are left, None if the fit has no known end in batches."""
    if limits.batches_per_epoch is not None and position.batches >= limits.batches_per_epoch:
        position = replace(position, epochs=position.epochs + 1, batches=0)
    by_epochs = _left_in_epochs(limits, position)
    by_steps = _left_in_steps(limits, position)
    return min((left for left in (by_epochs, by_steps) if left is not None), default=None)


def _left_in_epochs(limits: Limits, position: Position) -> int | None:
    if limits.epochs is None or limits.batches_per_epoch is None:
        return None
    return max((limits.epochs - position.epochs) * limits.batches_per_epoch - position.batches, 0)


def _left_in_steps(limits: Limits, position: Position) -> int | None:
    if limits.optimizer_steps is None:
        return None
    wanted = max(limits.optimizer_steps - position.optimizer_steps, 0)
    per_epoch, each = limits.batches_per_epoch, limits.batches_per_optimizer_step
    if wanted == 0:
        return 0
    if each is None:
        if position.optimizer_steps == 0 or (per_epoch is None and position.epochs):
            return None
        done = position.batches + position.epochs * (per_epoch or 0)
        return math.ceil(wanted * done / position.optimizer_steps)
    begun = position.batches // each
    if per_epoch is None:
        return (begun + wanted) * each - position.batches
    # The last step of an epoch takes what is left of it, so each epoch is counted for itself.
    epochs, steps = divmod(begun + wanted, math.ceil(per_epoch / each))
    return epochs * per_epoch + steps * each - position.batches


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What is to be expected, about: later validations and checkpoints are taken to cost what those so far did."""

    energy_j: float
    """Of the whole run, from its beginning to its end."""
    left_s: float
    """Until its end."""


@dataclass(frozen=True)
class Pace:
    """What a step costs, from figures seen in the course of a run, those of late counting more."""

    first: Spent | None = None
    last: Spent | None = None
    steps: float = 0.0
    step_s: float = 0.0
    step_j: float = 0.0
    """Of late: sums in which what is older counts less."""

    def seen(self, spent: Spent) -> Pace:
        """Return the pace with ``spent`` taken into account; figures without a new step change nothing."""
        if self.first is None or self.last is None:
            return Pace(spent, spent) if spent.steps else self
        steps, elapsed_s = spent.steps - self.last.steps, spent.t_s - self.last.t_s
        if steps <= 0:
            return self
        age = max(elapsed_s / _RECENT_S, steps / (_RECENT_SHARE * spent.steps))
        kept = 0.5**age
        fresh = (1 - kept) / (age * math.log(2))  # the new figures have begun to fade too: the mean over their time
        return Pace(
            self.first,
            spent,
            kept * self.steps + fresh * steps,
            kept * self.step_s + fresh * (spent.step_s - self.last.step_s),
            kept * self.step_j + fresh * (spent.step_j - self.last.step_j),
        )

    def forecast(self, steps_left: int | None, *, made: int, seconds_left: float | None = None) -> Forecast | None:
        """Return what is to be expected, None before enough is known, or of a fit without a known end.

        Args:
            steps_left: how many steps are still to be made.
            made: how many were made in this run; the figures seen may lag behind.
            seconds_left: time after which the fit is stopped, whatever is left.
        """
        each = self._each()
        if each is None or self.last is None:
            return None
        left = math.inf if steps_left is None else float(steps_left)
        if seconds_left is not None:
            left = min(left, max(seconds_left, 0.0) / each.seconds)
        if not math.isfinite(left):
            return None
        unseen = max(made - self.last.steps, 0)
        return Forecast(energy_j=self.last.energy_j + (left + unseen) * each.joules, left_s=left * each.seconds)

    def _each(self) -> _Each | None:
        """Return what a step costs with its share of what is no step."""
        if self.first is None or self.last is None:
            return None
        steps, elapsed_s = self.last.steps - self.first.steps, self.last.t_s - self.first.t_s
        if steps < LEAST_STEPS or elapsed_s < LEAST_S:
            return None
        # Validations and checkpoints come now and then: their share is that of the whole run.
        rest_s = max(elapsed_s - (self.last.step_s - self.first.step_s), 0.0)
        rest_j = max(self.last.energy_j - self.first.energy_j - (self.last.step_j - self.first.step_j), 0.0)
        return _Each(self.step_s / self.steps + rest_s / steps, self.step_j / self.steps + rest_j / steps)


@dataclass(frozen=True)
class _Each:
    seconds: float
    joules: float


def in_short(total_j: float, forecast: Forecast | None, earlier_j: float = 0.0) -> str:
    """Return both as a progress bar has room for: ``12.35 kJ of ~0.21 kWh, 14 min left``.

    ``earlier_j`` is the part of ``total_j`` that was spent before the run that the forecast is for.
    """
    spent = quantity(total_j, "J")
    if forecast is None:
        return spent
    return f"{spent} of ~{j_to_kwh(forecast.energy_j + earlier_j):.2g} kWh, {about(forecast.left_s)} left"


def about(seconds: float) -> str:
    """Return a time as people expect it: ``40 s``, ``14 min``, ``2 h 07 min``."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
