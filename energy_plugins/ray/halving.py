"""`EnergySuccessiveHalvingScheduler`: asynchronous successive halving whose rungs are joules, for Ray Tune."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, Any, Final

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from energy_plugins.errors import ConfigError
from energy_plugins.training.guard import warn
from energy_plugins.tune.sweep.successive_halving import REDUCTION_FACTOR, Rungs, Told, goes_on, value_at

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial

_TOTAL_J: Final = "energy/total_j"
_RUNGS_BELOW_THE_END: Final = 3


class EnergySuccessiveHalvingScheduler(FIFOScheduler):
    """Stops a trial that is not among the best at a number of joules; each rung is a multiple of the one before it.

    Ray's `ASHAScheduler` has rungs in epochs, so a costly configuration gets more energy than a cheap one to show
    itself. Here a trial is judged when it first reports beyond a rung, by its metric on the straight line between its
    last two reports, against the trials that came to that rung before. `EnergySuccessiveHalvingPruner` is the same for
    Optuna. A trial that does not report ``energy/total_j`` is never stopped: add an `EnergyReportCallback` to it.

    Args:
        metric: to judge by; that of the `TuneConfig` if it is not given.
        mode: "min" or "max"; that of the `TuneConfig` if it is not given.
        first_rung_j: joules of the first rung. None puts it three rungs below what the first complete trial drew, at an
            eighth of that by the usual factor; until there is one, none is stopped. One that a stopper ends is
            complete, too.
        reduction_factor: one in so many goes on from each rung, and the next is so many times as high.

    Raises:
        ConfigError: the first rung is no positive, finite number of joules, the factor no whole number from 2, or the
            mode is another.

    Example::

        tune_config = tune.TuneConfig(metric="val_loss", mode="min", scheduler=EnergySuccessiveHalvingScheduler())

    """

    def __init__(
        self,
        metric: str | None = None,
        mode: str | None = None,
        *,
        first_rung_j: float | None = None,
        reduction_factor: int = REDUCTION_FACTOR,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if mode not in {None, "min", "max"}:
            raise ConfigError(f'mode is {mode!r}: "min" or "max"')
        self._metric: str | None = metric
        self._mode = mode
        self._factor = Rungs(1.0 if first_rung_j is None else first_rung_j, reduction_factor).reduction_factor
        self._rungs = None if first_rung_j is None else Rungs(first_rung_j, reduction_factor)
        self._told: dict[str, Told] = {}
        self._at: dict[int, list[float]] = {}
        """Metrics at each rung."""
        self._warned = False

    def set_search_properties(
        self,
        metric: str | None,
        mode: str | None,
        **spec: object,  # noqa: ARG002 - Ray's
    ) -> bool:
        """Take metric and mode from the `TuneConfig`, unless they were given."""
        if (self._metric and metric) or (self._mode and mode):
            return False
        self._metric, self._mode = self._metric or metric, self._mode or mode
        return True

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        """Check that there is something to judge by. Raises ConfigError if there is not."""
        if not self._metric or not self._mode:
            raise ConfigError("there is nothing to judge trials by: give metric and mode, here or to the TuneConfig")
        super().on_trial_add(tune_controller, trial)

    def on_trial_result(
        self,
        tune_controller: TuneController,  # noqa: ARG002 - Ray's
        trial: Trial,
        result: dict[str, Any],
    ) -> str:
        """Tell whether a trial goes on."""
        now = self._read(trial, result)
        if now is None:
            return TrialScheduler.CONTINUE
        before, self._told[trial.trial_id] = self._told.get(trial.trial_id), now
        return TrialScheduler.CONTINUE if self._goes_on(before, now) else TrialScheduler.STOP

    def on_trial_complete(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> None:
        """Set the first rung by the first trial that is complete."""
        super().on_trial_complete(tune_controller, trial, result)
        now = self._read(trial, result)
        if self._rungs is None and now is not None:
            self._rungs = Rungs(now.energy_j / self._factor**_RUNGS_BELOW_THE_END, self._factor)

    def debug_string(self) -> str:
        """Return how many trials came to each rung."""
        if self._rungs is None:
            return "Successive halving in joules: no rungs yet"
        counts = ", ".join(f"{self._rungs.energy_j(rung):.4g} J: {len(at)}" for rung, at in sorted(self._at.items()))
        return f"Successive halving in joules, trials at each rung: {counts or 'none yet'}"

    def _goes_on(self, before: Told | None, now: Told) -> bool:
        if self._rungs is None or math.isnan(now.value):
            return not math.isnan(now.value)
        for rung in self._rungs.passed(0.0 if before is None else before.energy_j, now.energy_j):
            value, there = value_at(self._rungs.energy_j(rung), before, now), self._at.setdefault(rung, [])
            there.append(value)
            if not goes_on(value, there[:-1], reduction_factor=self._factor, maximize=self._mode == "max"):
                return False
        return True

    def _read(self, trial: Trial, result: dict[str, Any]) -> Told | None:
        """Return what a trial tells; None if its joules are not known (yet: NaN), or it tells no metric."""
        drawn_j, value = result.get(_TOTAL_J), result.get(self._metric or "")
        if not isinstance(drawn_j, Real):
            if not self._warned:
                self._warned = True
                warn(f"trial {trial.trial_id} reports no {_TOTAL_J}, so it is not judged: add an EnergyReportCallback")
            return None
        energy_j = float(drawn_j)
        return Told(energy_j, float(value)) if isinstance(value, Real) and 0 < energy_j < math.inf else None
