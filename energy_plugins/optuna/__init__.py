"""Joules for Optuna: what each trial drew, pruning by energy, and a budget for a whole study.

The names below are loaded on first use: a study of transformers needs no Lightning. `EnergyPruningCallback` is
Lightning's here; that of transformers' Trainer is in `energy_plugins.optuna.transformers`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from energy_plugins.lazy import lazy_names

try:
    import optuna  # noqa: F401 - nothing here works without it
except ModuleNotFoundError as error:
    raise ImportError("Optuna is missing: pip install energy-plugins[optuna]") from error

if TYPE_CHECKING:
    from energy_plugins.optuna.constraints import constrain_energy, energy_constraints
    from energy_plugins.optuna.halving import EnergySuccessiveHalvingPruner
    from energy_plugins.optuna.lightning import EnergyPruningCallback
    from energy_plugins.optuna.objective import charged, energy_objective
    from energy_plugins.optuna.pruner import EnergyBudgetPruner
    from energy_plugins.optuna.storages import open_storage
    from energy_plugins.optuna.study_budget import StudyEnergyBudget, study_energy_j
    from energy_plugins.optuna.suggest import suggest_micro_batch, suggest_power_limit
    from energy_plugins.optuna.target import energy_to_target, time_to_target

__all__ = [
    "EnergyBudgetPruner",
    "EnergyPruningCallback",
    "EnergySuccessiveHalvingPruner",
    "StudyEnergyBudget",
    "charged",
    "constrain_energy",
    "energy_constraints",
    "energy_objective",
    "energy_to_target",
    "open_storage",
    "study_energy_j",
    "suggest_micro_batch",
    "suggest_power_limit",
    "time_to_target",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "constraints": ("constrain_energy", "energy_constraints"),
            "halving": ("EnergySuccessiveHalvingPruner",),
            "lightning": ("EnergyPruningCallback",),
            "objective": ("charged", "energy_objective"),
            "pruner": ("EnergyBudgetPruner",),
            "storages": ("open_storage",),
            "study_budget": ("StudyEnergyBudget", "study_energy_j"),
            "suggest": ("suggest_micro_batch", "suggest_power_limit"),
            "target": ("energy_to_target", "time_to_target"),
        },
    )
