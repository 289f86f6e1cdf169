"""When a trial is to end: by its metric, by its energy, by the study's. What both trainers' callbacks ask."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from energy_plugins.errors import ConfigError
from energy_plugins.optuna.attributes import (
    FORECAST_J,
    METRIC_MISSING,
    METRIC_NAN,
    PRUNED,
    STUDY_SPENT,
    TOTAL_J,
    checked_budget_j,
)
from energy_plugins.optuna.charge import Charge
from energy_plugins.optuna.study_budget import begin_no_more
from energy_plugins.optuna.target import reaches
from energy_plugins.training.guard import warn

if TYPE_CHECKING:
    from collections.abc import Iterable

    import optuna

    from energy_plugins.measure.meter import EnergyMeter


class Pruning:
    """The end of one trial, or of several one after the other.

    Args:
        trial: None if there is none yet, or on ranks other than the first.
        monitor: the metric to prune by; None prunes by energy alone.
        budget_j: the most that a trial may draw (J).
        target: a value of the metric; what it took to reach it is written to the trial.
        direction: "minimize" or "maximize", to be held against the study's.

    Raises:
        ConfigError: a budget or target that is no number, or a study that does not go with them.
    """

    def __init__(
        self,
        trial: optuna.Trial | None,
        monitor: str | None,
        budget_j: float | None = None,
        *,
        target: float | None = None,
        direction: str | None = None,
    ) -> None:
        self.monitor = monitor
        self._budget_j = None if budget_j is None else checked_budget_j(budget_j)
        self._target = _checked_target(target, monitor)
        self._direction = _checked_direction(direction)
        self.trial: optuna.Trial | None = None
        self.charge: Charge | None = None
        self._unheard = False
        self._alone = True
        if trial is not None:
            self.of(trial)

    def of(self, trial: optuna.Trial) -> None:
        """Go on to a trial. Raises ConfigError if its study does not go with what was asked for."""
        names = [direction.name.lower() for direction in trial.study.directions]
        if len(names) > 1 and self.monitor is not None:
            raise ConfigError(
                f"Optuna prunes no trial by a metric where a study has {len(names)} objectives: give monitor=None to "
                f"prune by energy alone, or make a study of {self.monitor!r} alone and bound it by constrain_energy"
            )
        if self._direction is not None and names != [self._direction]:
            raise ConfigError(
                f"{self.monitor!r} is to {self._direction}, and the study is to {' and '.join(names)}: "
                f'make it with direction="{self._direction}"'
            )
        self.trial, self.charge = trial, None
        self._missing = self._nan = 0

    def begin(self, meter: EnergyMeter | None, *, ranks: int = 1) -> None:
        """Charge what is measured from now on to the trial."""
        self.charge, self._alone = None, ranks == 1
        if self.trial is not None and meter is not None and meter.run is not None and meter.run.own:
            self.charge = Charge.open(self.trial, meter, ranks=ranks)
        elif self.trial is not None and self._budget_j is not None:
            warn(f"no GPU is measured, so trial {self.trial.number} is not held to its {self._budget_j:g} J")

    def evaluated(self, metrics: Iterable[tuple[str, float]], step: int, *, report: bool = True) -> str:
        """Take note of an evaluation, and return why Optuna wants the trial to end by its metric; nothing if not.

        ``report`` tells Optuna; whoever has done that already leaves it.
        """
        if self.trial is None or self.monitor is None:
            return ""
        found = dict(metrics)
        value = found.get(self.monitor)
        if value is None:
            self._missing += 1
            self._write({METRIC_MISSING: float(self._missing)})
            if self._missing == 1:
                there = ", ".join(sorted(found)) or "none"
                warn(f"there is no metric {self.monitor!r} to prune by; those that are there: {there}")
            return ""
        if math.isnan(value):
            self._nan += 1
            self._write({METRIC_NAN: float(self._nan)})
        self._note_target(value)
        return self._reported(self.trial, value, step) if report else ""

    def _reported(self, trial: optuna.Trial, value: float, step: int) -> str:
        """Tell Optuna of a value, and return why it ends the trial; nothing if it does not, or cannot be asked."""
        try:
            trial.report(value, step)
            return f"pruned at {self.monitor} = {value:g}" if trial.should_prune() else ""
        except RuntimeError as error:  # Optuna's, of a trial that has ended
            return f"trial {trial.number} has ended elsewhere: {error}"
        except Exception as error:  # noqa: BLE001 - a storage raises what its database or network does
            if not self._unheard:
                warn(
                    f"the study could not be asked whether trial {trial.number} is to be pruned ({error!r:.200}): "
                    "it goes on, and the next evaluation asks again"
                )
            self._unheard = True
            return ""

    def over(self, left_j: float | None) -> str:
        """Return why the trial has to end for its energy; nothing if it has not.

        ``left_j`` is what the training is expected to draw from now on to its end, None if that is not known yet.
        """
        charge = self.charge
        if charge is None:
            return ""
        drawn_j = charge.drawn_j
        study_is_spent = why = charge.study_is_spent()
        if not why and self._budget_j is not None:
            if drawn_j > self._budget_j:
                why = f"{drawn_j:.4g} J drawn, of a budget of {self._budget_j:.4g} J"
            elif left_j is not None and drawn_j + left_j > self._budget_j:
                why = f"{drawn_j + left_j:.4g} J expected until its end, with a budget of {self._budget_j:.4g} J"
        if why:
            self.note(left_j)
            charge.write({PRUNED: 1.0, **({STUDY_SPENT: 1.0} if study_is_spent else {})})
            if study_is_spent and self._alone and self.trial is not None:  # other ranks would wait for the next trial
                begin_no_more(self.trial.study)
        return why

    def note(self, left_j: float | None) -> None:
        """Write what the trial has drawn and is expected to, for pruners that read it."""
        if self.charge is not None:
            drawn_j = self.charge.drawn_j
            known = {} if left_j is None else {FORECAST_J: drawn_j + left_j}
            self.charge.write({TOTAL_J: drawn_j, **known})

    def _note_target(self, value: float) -> None:
        charge, trial, target = self.charge, self.trial, self._target
        if charge is None or trial is None or target is None:
            return
        if reaches(value, target, trial.study.direction):
            charge.reached_target()

    def _write(self, attributes: dict[str, float]) -> None:
        if self.charge is not None:
            self.charge.write(attributes)


def _checked_target(target: object, monitor: str | None) -> float | None:
    if target is None:
        return None
    if monitor is None or isinstance(target, bool) or not isinstance(target, int | float) or not math.isfinite(target):
        raise ConfigError(f"target is {target!r} of metric {monitor!r}: give a finite number, and name the metric")
    return float(target)


def _checked_direction(direction: str | None) -> str | None:
    if direction not in {None, "minimize", "maximize"}:
        raise ConfigError(f'direction is {direction!r}: "minimize" or "maximize", as the study was made')
    return direction
