"""`EnergySuccessiveHalvingPruner`: asynchronous successive halving whose rungs are joules, not epochs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import TrialState

from energy_plugins.errors import ConfigError
from energy_plugins.optuna.attributes import LOST_AT, REPORTED_J, RUNG, TOTAL_J, own_float
from energy_plugins.tune.sweep.successive_halving import REDUCTION_FACTOR, Rungs, Told, goes_on, value_at

if TYPE_CHECKING:
    import optuna

_RUNGS_BELOW_THE_END: Final = 3


class EnergySuccessiveHalvingPruner(BasePruner):
    """Prunes a trial that is not among the best at a number of joules; each rung is a multiple of the one before it.

    A cheap configuration trains for more epochs until a rung than a costly one, and both are judged there. A trial is
    judged when it first reports a metric beyond a rung, by the metric on the straight line between its last two
    reports, against the trials that came to that rung before. Nobody waits for anybody, so it works with any number of
    workers on one storage.

    It reads what trials write of themselves under ``energy/``, so a trial has to be measured by an
    `EnergyPruningCallback`, or by `charged` or `energy_objective` with reports more than some seconds apart. One that
    is not measured is never pruned. The metrics at the rungs are user attributes of the trials, ``energy/rung_0`` and
    so on.

    Args:
        first_rung_j: joules of the first rung. None puts it three rungs below what the first complete trial drew, at an
            eighth of that by the usual factor; until there is one, none is pruned.
        reduction_factor: one in so many goes on from each rung, and the next is so many times as high.

    Raises:
        ConfigError: the first rung is no positive, finite number of joules, or the factor no whole number from 2.

    Example::

        study = optuna.create_study(pruner=EnergySuccessiveHalvingPruner(first_rung_j=2e4))

    """

    def __init__(self, first_rung_j: float | None = None, reduction_factor: int = REDUCTION_FACTOR) -> None:
        self._factor = Rungs(1.0 if first_rung_j is None else first_rung_j, reduction_factor).reduction_factor
        self._rungs = None if first_rung_j is None else Rungs(first_rung_j, reduction_factor)

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        """Tell whether a trial should end. Raises ConfigError for a study with several objectives."""
        if len(study.directions) > 1:
            raise ConfigError(
                f"the study has {len(study.directions)} objectives: trials are judged by one, give it one"
            )
        trials = study.get_trials(deepcopy=False)
        # What is given lacks what this pruner wrote to it before.
        own = next(one for one in trials if one.number == trial.number)
        step, drawn_j = trial.last_step, own_float(trial.number, own.user_attrs, TOTAL_J)
        if step is None or drawn_j is None:
            return False
        if own_float(trial.number, own.user_attrs, LOST_AT) == step:  # asked again: its rungs are behind it by now
            return True
        now, before = Told(drawn_j, trial.intermediate_values[step]), _told_before(own, step)
        self._rungs = self._rungs or _rungs_of(trials, self._factor)
        _write(study, trial, REPORTED_J, drawn_j)
        if self._rungs is None or math.isnan(now.value):
            return math.isnan(now.value)
        for rung in self._rungs.passed(before.energy_j, now.energy_j):
            key, value = f"{RUNG}{rung}", value_at(self._rungs.energy_j(rung), before, now)
            if math.isfinite(value):
                _write(study, trial, key, value)
            there = [own_float(one.number, one.user_attrs, key) for one in trials if one is not own]
            others = [other for other in there if other is not None]
            maximize = study.direction == StudyDirection.MAXIMIZE
            if not goes_on(value, others, reduction_factor=self._factor, maximize=maximize):
                _write(study, trial, LOST_AT, float(step))
                return True
        return False


def _told_before(trial: optuna.trial.FrozenTrial, step: int) -> Told:
    """Return what a trial reported before its last report; nothing yet is no joules, and no metric."""
    before = max((earlier for earlier in trial.intermediate_values if earlier < step), default=None)
    energy_j = own_float(trial.number, trial.user_attrs, REPORTED_J)
    if before is None or energy_j is None:
        return Told(energy_j or 0.0, math.nan)
    return Told(energy_j, trial.intermediate_values[before])


def _rungs_of(trials: list[optuna.trial.FrozenTrial], factor: int) -> Rungs | None:
    """Return rungs below what the first complete trial drew, None if none is complete."""
    ended = [
        (trial.datetime_complete.timestamp(), drawn_j)
        for trial in trials
        if trial.state == TrialState.COMPLETE
        and trial.datetime_complete is not None
        and (drawn_j := own_float(trial.number, trial.user_attrs, TOTAL_J)) is not None
        and drawn_j > 0
    ]
    return Rungs(min(ended)[1] / factor**_RUNGS_BELOW_THE_END, factor) if ended else None


def _write(study: optuna.Study, trial: optuna.trial.FrozenTrial, key: str, value: float) -> None:
    """Write to a trial as Optuna's own pruners do: what they are given of it is a copy."""
    study._storage.set_trial_user_attr(trial._trial_id, key, value)  # noqa: SLF001
