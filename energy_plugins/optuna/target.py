"""Energy and time to a target metric: the first time that a trial was as good as that."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import optuna

from energy_plugins.optuna.attributes import TO_TARGET_J, TO_TARGET_S, own_float

if TYPE_CHECKING:
    from optuna.study import StudyDirection


def reaches(value: float, target: float, direction: StudyDirection) -> bool:
    """Tell whether a metric is as good as a target; NaN never is."""
    if math.isnan(value):
        return False
    return value >= target if direction == optuna.study.StudyDirection.MAXIMIZE else value <= target


def energy_to_target(trial: optuna.Trial) -> float:
    """Return what a trial drew until it reached its target (J), to be minimised.

    Raises:
        optuna.TrialPruned: it never did; its joules are charged all the same.
    """
    return _reached(trial, TO_TARGET_J)


def time_to_target(trial: optuna.Trial) -> float:
    """Return how long a trial took to reach its target (s), to be minimised. Raises as `energy_to_target`."""
    return _reached(trial, TO_TARGET_S)


_NEVER: Final = "trial {} never reached its target; is there an EnergyPruningCallback(..., target=...)?"


def _reached(trial: optuna.Trial, key: str) -> float:
    value = own_float(trial.number, trial.user_attrs, key)
    if value is None:
        raise optuna.TrialPruned(_NEVER.format(trial.number))
    return value
