"""A bound on a trial's energy as Optuna's samplers know it: the best metric within so many joules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from energy_plugins.errors import ConfigError
from energy_plugins.optuna.attributes import OVER_BUDGET_J, TOTAL_J, checked_budget_j, own_float

if TYPE_CHECKING:
    import optuna

_NAME = "energy_within_budget"


def constrain_energy(trial: optuna.Trial, budget_j: float) -> None:
    """Have a trial count as feasible if it drew at most ``budget_j``: to be called once, at its end.

    That is after whatever measured it. A second call changes nothing, as `optuna.Trial.set_constraint` has it. Before
    Optuna 5, samplers need ``constraints_func=energy_constraints`` as well.

    Raises:
        ConfigError: the budget is no positive, finite number, or nothing measured the trial.
    """
    budget_j = checked_budget_j(budget_j)
    attributes = trial.user_attrs
    drawn_j = own_float(trial.number, attributes, TOTAL_J)
    if drawn_j is None:
        raise ConfigError(
            f"trial {trial.number} has no {TOTAL_J}: measure it first, by energy_objective, charged or a callback"
        )
    if own_float(trial.number, attributes, OVER_BUDGET_J) is not None:
        return
    trial.set_user_attr(OVER_BUDGET_J, drawn_j - budget_j)
    set_constraint = getattr(trial, "set_constraint", None)  # since Optuna 5
    if set_constraint is not None:
        set_constraint(_NAME, drawn_j - budget_j)


def energy_constraints(trial: optuna.trial.FrozenTrial) -> tuple[float, ...]:
    """Return by how much a trial is over its budget (J), for ``constraints_func`` of samplers before Optuna 5.

    One that was never bounded, such as a trial that failed, counts as infeasible.
    """
    over_j = own_float(trial.number, trial.user_attrs, OVER_BUDGET_J)
    return (1.0 if over_j is None else over_j,)
