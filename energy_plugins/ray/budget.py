"""`EnergyBudgetStopper`: ends trials that draw too much, and an experiment whose trials have drawn enough."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from ray.tune import Callback, Stopper

from energy_plugins.errors import ConfigError, ReportError
from energy_plugins.measure.budget import Budget
from energy_plugins.ray.charges import read_energy
from energy_plugins.training.guard import warn
from energy_plugins.units import j_to_kwh

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

_LOOK_EVERY_S: Final = 1.0
_LAST_WORD_S: Final = 10.0
"""Within which a trial that has ended writes what it drew in all."""
_TOTAL_J: Final = "energy/total_j"


class EnergyBudgetStopper(Stopper, Callback):
    """Ends an experiment when its trials have drawn so much, and each trial that has drawn too much.

    It is to be given twice, for Ray tells a stopper nothing of trials between their reports::

        budget = EnergyBudgetStopper(energy_kwh=20.0)
        run_config = tune.RunConfig(stop=budget, callbacks=[budget])

    As a callback it looks once a second at what all trials have drawn, whatever became of them: one that was killed
    counts, and an experiment that is restored goes on counting. As a stopper alone it knows what trials reported.

    Args:
        energy_kwh: the most that all trials may draw, in kilowatt-hours.
        trial_kwh: the most that one trial may draw, in kilowatt-hours; looked at whenever it reports.

    Raises:
        ConfigError: a budget is no positive, finite number, or there is none. It is a ValueError.
    """

    def __init__(self, energy_kwh: float | None = None, *, trial_kwh: float | None = None) -> None:
        if energy_kwh is None and trial_kwh is None:
            raise ConfigError("there is no budget to keep: give energy_kwh, for all trials, or trial_kwh, for each")
        self._energy_j = _joules(energy_kwh, "energy_kwh")
        self._trial_j = _joules(trial_kwh, "trial_kwh")
        self._drawn_j: dict[str, float] = {}
        self._until_s: dict[str, float] = {}
        """How long trials are looked at that have ended."""
        self._next_look_s = 0.0
        self._said = self._warned = False

    @property
    def drawn_j(self) -> float:
        """What all trials have drawn, as far as is known (J)."""
        return math.fsum(self._drawn_j.values())

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Tell whether a trial that reports has drawn too much."""
        reported = result.get(_TOTAL_J)
        if isinstance(reported, int | float) and math.isfinite(reported):
            self._drawn_j[trial_id] = max(float(reported), self._drawn_j.get(trial_id, 0.0))
        elif reported is None and not self._warned:
            self._warned = True
            warn(f"trial {trial_id} reports no {_TOTAL_J}, so no budget is kept: add an EnergyReportCallback to it")
        return self._drawn_j.get(trial_id, 0.0) >= self._trial_j

    def stop_all(self) -> bool:
        """Tell whether the experiment's budget is spent."""
        drawn_j = self.drawn_j
        if drawn_j < self._energy_j:
            return False
        if not self._said:
            self._said = True
            budget, drawn = j_to_kwh(self._energy_j), j_to_kwh(drawn_j)
            sys.stdout.write(f"\nThe energy budget of {budget:.6g} kWh is spent ({drawn:.6g} kWh drawn)\n")
        return True

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: object) -> None:  # noqa: ARG002 - Ray's
        """Look what trials have drawn that have not ended."""
        now_s = time.monotonic()
        if now_s < self._next_look_s:
            return
        self._next_look_s = now_s + _LOOK_EVERY_S
        for trial in trials:
            if now_s < self._until_s.get(trial.trial_id, math.inf):
                self._look(trial)
                if trial.is_finished():
                    self._until_s.setdefault(trial.trial_id, now_s + _LAST_WORD_S)

    def on_experiment_end(self, trials: list[Trial], **info: object) -> None:  # noqa: ARG002 - Ray's
        """Look at all of them once more."""
        for trial in trials:
            self._look(trial)

    def _look(self, trial: Trial) -> None:
        if trial.storage is None:
            return
        try:
            energy = read_energy(trial.storage.storage_filesystem, trial.storage.trial_fs_path)
        except (OSError, ReportError) as error:
            if not self._warned:
                self._warned = True
                warn(f"what trial {trial.trial_id} draws is not known: {error}")
            return
        if energy is not None:  # the last word is exact, and those before were guesses
            before_j = 0.0 if energy.ended else self._drawn_j.get(trial.trial_id, 0.0)
            self._drawn_j[trial.trial_id] = max(energy.total_j, before_j)


def _joules(kwh: float | None, name: str) -> float:
    if kwh is None:
        return math.inf
    try:
        return Budget.of_kwh(kwh).energy_j
    except ValueError:
        raise ConfigError(f"{name} is {kwh!r}: give a positive number of kilowatt-hours") from None
