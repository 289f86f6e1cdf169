"""Joules for Ray Tune: what each trial drew, beside its other metrics, and a budget for a whole experiment.

The names below are loaded on first use. `EnergyReportCallback` is Lightning's here; that of transformers' Trainer is
in `energy_plugins.ray.transformers`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from energy_plugins.lazy import lazy_names

try:
    import ray.tune  # noqa: F401 - nothing here works without it
except ImportError as error:
    raise ImportError("Ray Tune is missing: pip install energy-plugins[ray]") from error

if TYPE_CHECKING:
    from energy_plugins.ray.budget import EnergyBudgetStopper
    from energy_plugins.ray.charges import experiment_energy_j, trial_energy
    from energy_plugins.ray.halving import EnergySuccessiveHalvingScheduler
    from energy_plugins.ray.lightning import EnergyReportCallback


__all__ = [
    "EnergyBudgetStopper",
    "EnergyReportCallback",
    "EnergySuccessiveHalvingScheduler",
    "experiment_energy_j",
    "trial_energy",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "budget": ("EnergyBudgetStopper",),
            "charges": ("experiment_energy_j", "trial_energy"),
            "halving": ("EnergySuccessiveHalvingScheduler",),
            "lightning": ("EnergyReportCallback",),
        },
    )
