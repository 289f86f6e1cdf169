"""`EnergyBudgetPruner`: any pruner of Optuna's, and an end to trials that draw too much."""

from __future__ import annotations

import optuna
from optuna.pruners import BasePruner

from energy_plugins.optuna.attributes import FORECAST_J, TOTAL_J, charged_j, checked_budget_j, own_float
from energy_plugins.optuna.study_budget import budget_of


class EnergyBudgetPruner(BasePruner):
    """Prunes what another pruner would, and a trial that has drawn more than its budget or is predicted to.

    It reads what trials write of themselves under ``energy/``, so a trial has to be measured by `energy_objective`,
    `charged` or an `EnergyPruningCallback`. One that is not is left to the other pruner. A study's own budget
    (`StudyEnergyBudget`) counts as well.

    Args:
        pruner: decides by the metric; Optuna's median pruner if not given.
        budget_j: the most that a trial may draw (J); None leaves that to the study's budget.

    Raises:
        ConfigError: the budget is no positive, finite number.
    """

    def __init__(self, pruner: BasePruner | None = None, budget_j: float | None = None) -> None:
        self._pruner = optuna.pruners.MedianPruner() if pruner is None else pruner
        self._budget_j = None if budget_j is None else checked_budget_j(budget_j)

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        """Tell whether a trial should end."""
        return self._is_over(study, trial) or self._pruner.prune(study, trial)

    def _is_over(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        drawn_j = own_float(trial.number, trial.user_attrs, TOTAL_J)
        expected_j = own_float(trial.number, trial.user_attrs, FORECAST_J)
        if self._budget_j is not None and max(drawn_j or 0.0, expected_j or 0.0) > self._budget_j:
            return True
        budget_j = budget_of(study)
        return budget_j is not None and charged_j(study.get_trials(deepcopy=False)) >= budget_j
