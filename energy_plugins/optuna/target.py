"""Energy and time to a target metric: the first time that a trial was as good as that."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

import optuna

from energy_plugins.optuna.attributes import TO_TARGET_J, TO_TARGET_S, own_float
from energy_plugins.optuna.charge import charge_of

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
    charge = charge_of(trial)
    if charge is not None and charge.has(TO_TARGET_S):
        end_s = time.monotonic() + _PATIENCE_S
        while not charge.has(TO_TARGET_J) and time.monotonic() < end_s:
            charge.settle_target()
            time.sleep(0.05)
    return _reached(trial, TO_TARGET_J)


def time_to_target(trial: optuna.Trial) -> float:
    """Return how long a trial took to reach its target (s), to be minimised. Raises as `energy_to_target`."""
    return _reached(trial, TO_TARGET_S)


_PATIENCE_S: Final = 3.0
"""Joules are known about two seconds late."""
_NEVER: Final = "trial {} never reached its target; is there an EnergyPruningCallback(..., target=...)?"


def _reached(trial: optuna.Trial, key: str) -> float:
    value = own_float(trial.number, trial.user_attrs, key)
    if value is None:
        raise optuna.TrialPruned(_NEVER.format(trial.number))
    return value
