"""The user attributes of trials and studies that this package writes, and how they are read again. All are floats."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from energy_plugins.errors import ConfigError

if TYPE_CHECKING:
    import optuna

PREFIX: Final = "energy/"
TOTAL_J: Final = "energy/total_j"
DURATION_S: Final = "energy/duration_s"
AVG_POWER_W: Final = "energy/avg_power_w"
TRIAL: Final = "energy/trial"
"""The number of the trial that the others speak of: Optuna hands a failed trial's attributes on to one that retries
it, and its joules must not count twice."""
FORECAST_J: Final = "energy/forecast_j"
"""What the trial was last expected to draw until its end."""
SHARED: Final = "energy/shared_gpu"
"""How many others were seen on the same GPU meanwhile: the joules are then those of all of them."""
SIMULATED: Final = "energy/simulated"
PRUNED: Final = "energy/pruned_for_energy"
STUDY_SPENT: Final = "energy/study_spent"
"""That the trial ended because its study's budget was spent, by what was known then."""
METRIC_MISSING: Final = "energy/metric_missing"
"""How many evaluations lacked the metric that was to be watched."""
METRIC_NAN: Final = "energy/metric_nan"
TO_TARGET_J: Final = "energy/to_target_j"
TO_TARGET_S: Final = "energy/to_target_s"
OVER_BUDGET_J: Final = "energy/over_budget_j"
RUNG: Final = "energy/rung_"
"""And a number: the metric at that rung of `EnergySuccessiveHalvingPruner`."""
REPORTED_J: Final = "energy/reported_j"
"""What the trial had drawn when it last reported its metric to that pruner."""
LOST_AT: Final = "energy/lost_at_step"
"""The step at which that pruner ended the trial."""
BUDGET_J: Final = "energy/budget_j"
"""Of a study."""


def own_float(number: int, attributes: Mapping[str, Any], key: str) -> float | None:
    """Return a float that trial ``number`` wrote itself, None if there is none."""
    value = attributes.get(key)
    if attributes.get(TRIAL) != number or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def charged_j(trials: Iterable[optuna.trial.FrozenTrial], *, but: int | None = None) -> float:
    """Return what trials drew, whatever became of them; the one of number ``but`` is left out."""
    charged = (own_float(trial.number, trial.user_attrs, TOTAL_J) for trial in trials if trial.number != but)
    return math.fsum(joules for joules in charged if joules is not None)


def checked_budget_j(budget_j: object, what: str = "budget_j") -> float:
    """Return a budget (J). Raises ConfigError for what is no positive, finite number."""
    if isinstance(budget_j, bool) or not isinstance(budget_j, int | float) or not 0 < budget_j < math.inf:
        raise ConfigError(f"{what} is {budget_j!r}: give a positive number, or leave it out for no budget")
    return float(budget_j)
