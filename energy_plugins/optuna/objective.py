"""`energy_objective`: a trial under a meter, for studies with energy as an objective of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import optuna

from energy_plugins.errors import ConfigError, DeviceError
from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.optuna.charge import Charge, charge_of
from energy_plugins.optuna.study_budget import begin_no_more

if TYPE_CHECKING:
    from energy_plugins.measure.devices import Gpu


@contextmanager
def charged(trial: optuna.Trial, *, devices: Sequence[int | str | Gpu] | None = None) -> Iterator[Charge]:
    """Charge what the GPUs draw in the block to a trial, however the block ends: pruned, failed or killed.

    Args:
        trial: of a study.
        devices: as `energy_plugins.EnergyMeter` takes them.

    Raises:
        DeviceError: ``devices`` names a GPU that is not there, or there is none to measure.
        optuna.TrialPruned: the study's `StudyEnergyBudget` is spent.
    """
    if (there := charge_of(trial)) is not None:
        yield there
        return
    meter = EnergyMeter(f"{trial.study.study_name} trial {trial.number}", devices, config={"trial": trial.number})
    with meter:
        if meter.run is None or not meter.run.own:
            meter.leave_no_entry()
            raise DeviceError(
                "no GPU is measured here, so a trial has no joules: "
                "`energy-plugins doctor` says what is missing; without a GPU, use an objective without energy"
            )
        charge = Charge.open(trial, meter)
        if why := charge.study_is_spent():
            begin_no_more(trial.study)
            raise optuna.TrialPruned(why)
        yield charge


def energy_objective(
    trial: optuna.Trial,
    fn: Callable[[optuna.Trial], float | Mapping[str, float]],
    metric: str = "value",
    *,
    devices: Sequence[int | str | Gpu] | None = None,
) -> tuple[float, float]:
    """Return the metric and the joules of ``fn(trial)``, for ``create_study(directions=["maximize", "minimize"])``.

    The trial is measured from the call to the return of ``fn``. If that raises, the exception goes on, with the joules
    charged to the trial already. Joules that could not be measured are NaN, which Optuna counts as a failed trial.

    Args:
        trial: of a study with two objectives, the second of which is minimised.
        fn: trains, and returns the metric, or a mapping that holds it.
        metric: what it is called there.
        devices: as `energy_plugins.EnergyMeter` takes them.

    Raises:
        ConfigError: the study has other objectives, or ``fn`` does not return the metric.
        DeviceError: there is no GPU to measure.
        optuna.TrialPruned: the study's `StudyEnergyBudget` is spent.
    """
    directions = trial.study.directions
    if len(directions) != 2 or directions[1] != optuna.study.StudyDirection.MINIMIZE:
        raise ConfigError(
            f"energy_objective returns ({metric}, joules), and the study's directions are "
            f"{[direction.name.lower() for direction in directions]}: "
            'make it with directions=["minimize" or "maximize", "minimize"]'
        )
    with charged(trial, devices=devices) as charge:
        value = _value(fn(trial), metric)
    return value, charge.drawn_j if charge.known else math.nan


def _value(found: float | Mapping[str, float], metric: str) -> float:
    if isinstance(found, Mapping):
        if metric not in found:
            raise ConfigError(f"the objective returned no {metric!r}, but {', '.join(map(repr, found)) or 'nothing'}")
        found = found[metric]
    try:
        return float(found)
    except (TypeError, ValueError):
        raise ConfigError(f"the objective returned {found!r} for {metric!r}, which is no number") from None
