"""A budget of energy for a whole study, counted over all its workers through its storage."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from energy_plugins.optuna.attributes import BUDGET_J, STUDY_SPENT, charged_j, checked_budget_j, own_float
from energy_plugins.units import j_to_kwh, kwh_to_j

if TYPE_CHECKING:
    import optuna


def study_energy_j(study: optuna.Study) -> float:
    """Return what all trials of a study drew so far (J): running, failed, pruned and killed ones included.

    A trial that runs counts with what it drew until a few seconds ago.
    """
    return charged_j(study.get_trials(deepcopy=False))


class StudyEnergyBudget:
    """Ends a study when its trials have drawn so much: ``study.optimize(..., callbacks=[StudyEnergyBudget(20.0)])``.

    The budget is kept in the study, so that every worker's trials know it: one that is measured by `energy_objective`
    does not begin, and one with an `EnergyPruningCallback` is pruned, once it is spent; the worker that it belongs to
    then begins no other, even without this callback (a training on several ranks does). What was spent is what all
    trials wrote, so a study that is resumed goes on counting. The budget that was given last is the one that counts.

    Args:
        energy_kwh: the most that all trials may draw, in kilowatt-hours.

    Raises:
        ConfigError: it is no positive, finite number.
    """

    def __init__(self, energy_kwh: float) -> None:
        self.energy_j = kwh_to_j(checked_budget_j(energy_kwh, "energy_kwh"))

    def begin(self, study: optuna.Study) -> StudyEnergyBudget:
        """Have a study know of it before its first trial ends; trials that run are then ended, too."""
        if study.user_attrs.get(BUDGET_J) != self.energy_j:
            study.set_user_attr(BUDGET_J, self.energy_j)
        return self

    def __call__(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        """Stop the study if it is spent, or ``trial`` ended for that: what it drew in the end may be a little less."""
        self.begin(study)
        if own_float(trial.number, trial.user_attrs, STUDY_SPENT) or study_energy_j(study) >= self.energy_j:
            study.stop()


def begin_no_more(study: optuna.Study) -> None:
    """End this worker's loop over trials; whoever asks for trials and tells of them has none."""
    with suppress(RuntimeError):  # Optuna's, outside of `optimize`
        study.stop()


def budget_of(study: optuna.Study) -> float | None:
    """Return the budget of a study (J), None if it has none."""
    budget_j = study.user_attrs.get(BUDGET_J)
    return float(budget_j) if isinstance(budget_j, int | float) else None


def spent_sentence(spent_j: float, budget_j: float) -> str:
    """Say that a study's budget is spent."""
    return f"the study's energy budget of {j_to_kwh(budget_j):.6g} kWh is spent ({j_to_kwh(spent_j):.6g} kWh drawn)"
