"""A study of Optuna's as the value that `energy_plugins.report.sweep` renders."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import optuna
from optuna.study import StudyDirection

from energy_plugins.errors import ConfigError, ReportError
from energy_plugins.optuna.attributes import DURATION_S, SHARED, SIMULATED, TO_TARGET_J, TO_TARGET_S, TOTAL_J, own_float
from energy_plugins.optuna.storages import open_storage
from energy_plugins.optuna.study_budget import budget_of
from energy_plugins.report.sweep import Sweep, SweepTrial

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_LEAST_TRIALS = 4


def read_sweep(storage: str, study_name: str) -> Sweep:
    """Read a study. Its metric is the first objective.

    Raises:
        ReportError: the storage cannot be read, or has no such study; then it names those that are there.
        ConfigError: there is no such storage.
    """
    try:
        opened = open_storage(storage)
        names = optuna.get_all_study_names(opened)
        found = sweep_of(optuna.load_study(study_name=study_name, storage=opened)) if study_name in names else None
    except ConfigError:
        raise
    except Exception as error:
        raise ReportError(f"{storage} cannot be read: {error}") from error
    if found is None:
        there = ", ".join(map(repr, sorted(names)[:20])) or "none"
        raise ReportError(f"{storage} has no study {study_name!r}; there are: {there}")
    return found


def sweep_of(study: optuna.Study) -> Sweep:
    """Return what a study cost and found."""
    trials = study.get_trials(deepcopy=False)
    importance, why = _importance(study, trials)
    metrics = study.metric_names
    return Sweep(
        study=study.study_name,
        metric=metrics[0] if metrics else "metric",
        maximize=study.directions[0] == StudyDirection.MAXIMIZE,
        trials=tuple(map(_trial, trials)),
        budget_j=budget_of(study),
        importance=importance,
        why_no_importance=why,
    )


def _trial(trial: FrozenTrial) -> SweepTrial:
    def known(key: str) -> float | None:
        return own_float(trial.number, trial.user_attrs, key)

    return SweepTrial(
        number=trial.number,
        state=trial.state.name.lower(),
        value=trial.values[0] if trial.values else None,
        energy_j=known(TOTAL_J),
        duration_s=known(DURATION_S),
        to_target_j=known(TO_TARGET_J),
        to_target_s=known(TO_TARGET_S),
        shared=bool(known(SHARED)),
        simulated=bool(known(SIMULATED)),
        params=dict(trial.params),
    )


def _energy_j(trial: FrozenTrial) -> float:
    return own_float(trial.number, trial.user_attrs, TOTAL_J) or 0.0


def _importance(study: optuna.Study, trials: list[FrozenTrial]) -> tuple[dict[str, float] | None, str]:
    """Return the share of each hyperparameter in what trials differ by, or why it is not known.

    Only complete trials that shared no GPU count, for those that were pruned drew what they were let.
    """
    known = [
        trial
        for trial in trials
        if trial.state == optuna.trial.TrialState.COMPLETE
        and _energy_j(trial) > 0
        and not own_float(trial.number, trial.user_attrs, SHARED)
    ]
    if len(known) < _LEAST_TRIALS:
        return None, f"{len(known)} complete trials have joules, and it takes {_LEAST_TRIALS}"
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # or it tells of a study that nobody asked for
    alone = optuna.create_study(directions=study.directions)
    optuna.logging.set_verbosity(before)
    alone.add_trials(known)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of experimental functions
            found = optuna.importance.get_param_importances(
                alone, evaluator=_evaluator(), target=lambda trial: float(trial.user_attrs[TOTAL_J])
            )
    except (ValueError, RuntimeError) as error:
        return None, str(error)
    return {name: float(share) for name, share in found.items()}, ""


def _evaluator() -> optuna.importance.BaseImportanceEvaluator:
    """Return fANOVA (Hutter et al., 2014), which needs scikit-learn, or what Optuna has without it."""
    try:
        return optuna.importance.FanovaImportanceEvaluator(seed=0)
    except ImportError:
        return optuna.importance.PedAnovaImportanceEvaluator()
