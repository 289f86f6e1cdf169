"""The search for the batch size and power limit that reach a target metric with the least energy.

Energy to a target is epochs to the target times joules of an epoch, and the two are learned in different ways (You,
Chung and Chowdhury, Zeus, NSDI 2023). The power limit changes only the joules, so a few short windows at the start of a
training tell which limit is its best. Epochs must be trained; but a batch size is begun only if it is expected to gain
something, and stopped as soon as its joules, or its metric at a rung of joules, say that it does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, Protocol

from energy_plugins.tune.sweep.batch_walk import Expected, expected_gain
from energy_plugins.tune.sweep.successive_halving import goes_on, value_at
from energy_plugins.tune.sweep.trials import Sweep, SweepTrial

_LIMITS_WITHIN: Final = 0.15
"""Above the best limit of the nearest batch size: other limits of the next one are tried only if they lie beside its
best."""
_RUNGS: Final = (0.25, 0.5)
"""Shares of the least energy known, at which the metric has to be as good as in the training that needed that."""


@dataclass(frozen=True)
class Evaluation:
    """How far a training has come."""

    epochs: float
    """How many it was trained in all, its windows included."""
    value: float | None
    """Of the metric, of which more is better; None if there is none yet."""
    reached: bool
    """Whether that is the target."""
    ended: bool = False
    """Whether it will not be trained any longer."""


class SweepTraining(Protocol):
    """A training that a sweep has begun; it is dropped when nothing more is asked of it."""

    def window(self, limit_w: float) -> float:
        """Train for some seconds under a power limit (W), and return the joules that an epoch draws so."""

    def until_evaluated(self, limit_w: float) -> Evaluation:
        """Train under a power limit (W) until the next evaluation."""


def search_energy_to_target(start: Callable[[int], SweepTraining], sweep: Sweep, *, most_trials: int) -> Sweep:
    """Return the sweep after all trainings that were worth it; its ``best`` is what to use.

    Args:
        start: begins a training with a batch size.
        sweep: what to choose from; with trials, if it was begun before.
        most_trials: how many trainings may be begun, those of before included.
    """
    while len(sweep.trials) < most_trials and (batch := propose(sweep)) is not None:
        sweep = sweep.with_trial(_trained(start(batch), SweepTrial(batch), sweep))
    return sweep


def _trained(training: SweepTraining, trial: SweepTrial, sweep: Sweep) -> SweepTrial:
    while (limit_w := next_limit(sweep, trial)) is not None:
        trial = replace(trial, epoch_j={**trial.epoch_j, limit_w: training.window(limit_w)})
    while (stopped := given_up(sweep, trial)) is None:
        seen = training.until_evaluated(trial.limit_w)
        trial = replace(trial, curve=(*trial.curve, (seen.epochs, seen.value)), reached=seen.reached)
        if seen.reached or seen.ended:
            return trial
    return stopped


def propose(sweep: Sweep) -> int | None:
    """Return the batch size to train next; None if none is expected to be worth it."""
    if not sweep.trials:
        return sweep.start_batch
    tried = {trial.batch for trial in sweep.trials}
    gains = {batch: _gain(sweep, batch) for batch in sweep.batches if batch not in tried}
    batch = max(gains, key=gains.__getitem__, default=None)
    return batch if batch is not None and gains[batch] >= sweep.least_gain else None


def next_limit(sweep: Sweep, trial: SweepTrial) -> float | None:
    """Return the power limit of the next window at the start of a training, None if its best one is known.

    The highest first. Of the first training all of them are tried; of others those that cost little more than the best
    at the nearest batch size, and on from there while the last one on either side is the best.
    """
    limits_w = sorted(sweep.limits_w, reverse=True)
    wanted = limits_w
    if sweep.trials:
        nearest = min(sweep.trials, key=lambda other: abs(math.log2(other.batch / trial.batch)))
        most_j = (1 + _LIMITS_WITHIN) * nearest.least_epoch_j
        wanted = [limit_w for limit_w in limits_w if nearest.epoch_j.get(limit_w, math.inf) <= most_j]
    left = next((limit_w for limit_w in wanted if limit_w not in trial.epoch_j), None)
    if left is not None:
        return left
    place = limits_w.index(trial.limit_w)
    beside = limits_w[max(place - 1, 0) : place + 2]
    return next((limit_w for limit_w in beside if limit_w not in trial.epoch_j), None)


def given_up(sweep: Sweep, trial: SweepTrial) -> SweepTrial | None:
    """Return a training that is not worth going on with as it is to be remembered, None if it is worth it.

    Asked after the windows at its start, and after each evaluation.
    """
    best = sweep.best
    if best is None or trial.diverged:
        return trial if trial.diverged else None
    if not trial.curve:
        return trial if _gain(sweep, trial.batch, trial) < sweep.least_gain else None
    before_j = trial.curve[-2][0] * trial.least_epoch_j if len(trial.curve) > 1 else 0.0
    for rung_j in (share * best.energy_j for share in _RUNGS):
        if before_j < rung_j <= trial.energy_j:
            own, other = _at(trial, rung_j), _at(best, rung_j)
            if own is not None and other is not None and not goes_on(own, [other], maximize=True):
                return replace(trial, behind=_behind(trial, best))
    is_late = trial.energy_j + trial.least_epoch_j > best.energy_j  # at the next evaluation, an epoch from now
    return replace(trial, behind=_behind(trial, best)) if is_late else None


def _at(trial: SweepTrial, energy_j: float) -> float | None:
    """Return the metric at a rung; None if it is not known on both sides of it."""
    for before, now in pairwise(trial.told()):
        if before.energy_j < energy_j <= now.energy_j:
            return value_at(energy_j, before, now)
    return None


def _behind(trial: SweepTrial, best: SweepTrial) -> float:
    told = trial.told()
    if not told:
        return 1.0
    highest = max(one.value for one in told)
    own_j = next(one.energy_j for one in told if one.value >= highest)
    same_j = next((one.energy_j for one in best.told() if one.value >= highest), None)
    return 1.0 if same_j is None else max(own_j / same_j, 1.0)


def _gain(sweep: Sweep, batch: int, running: SweepTrial | None = None) -> float:
    """Return what a size is expected to gain over the least energy known."""
    at = sweep.doublings(batch)
    best = sweep.best
    if best is None:  # nothing has reached the target yet: the likeliest to do so is near to what is usual
        return 1 / (1 + abs(at))
    trials = sweep.trials if running is None else (*sweep.trials, running)
    epoch_j = {sweep.doublings(trial.batch): math.log(trial.least_epoch_j) for trial in trials}
    epochs = {sweep.doublings(trial.batch): math.log(_epochs(trial, best)) for trial in sweep.trials if trial.curve}
    if running is not None and running.least_epoch_j > best.energy_j:
        return 0.0
    one, many = sweep.epoch_energy.expect(at, epoch_j), sweep.epochs.expect(at, epochs)
    return expected_gain(Expected(one.mean + many.mean, math.hypot(one.sd, many.sd)), math.log(best.energy_j))


def _epochs(trial: SweepTrial, best: SweepTrial) -> float:
    """Return the epochs to the target: those that it took, or would have taken at least as far as it shows."""
    return trial.epochs if trial.reached else max(trial.epochs + 1, trial.behind * best.energy_j / trial.least_epoch_j)
