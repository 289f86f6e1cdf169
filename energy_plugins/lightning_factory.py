"""Lightning's entry point: every Trainer asks here for callbacks, and gets one only where the environment wants it."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer


def callbacks() -> list[Callback]:
    """Return a monitor if a variable ``ENERGY_*`` of the configuration is set, else nothing.

    An exception here would break every Trainer of this installation, so there is none.
    """
    if not any(name.startswith("ENERGY_") and os.environ[name] for name in os.environ):
        return []
    try:
        return _wanted()
    except Exception as error:  # noqa: BLE001 - see above
        try:
            warnings.warn(f"energy: Lightning's trainings are not measured: {error}", RuntimeWarning, stacklevel=2)
        except RuntimeWarning:  # where warnings are errors
            pass
        return []


def _wanted() -> list[Callback]:
    from energy_plugins.config import FILE_VARIABLE, VARIABLES, effective  # noqa: PLC0415 - few Trainers get here

    asked = any(os.environ.get(name) for name in (*VARIABLES, FILE_VARIABLE))
    if not asked or not effective().config.measure.enabled:
        return []
    from energy_plugins.lightning import EnergyMonitor  # noqa: PLC0415

    class EnvironmentMonitor(EnergyMonitor):
        """The monitor of a Trainer that was given none, under a key of its own in checkpoints."""

        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            """Stand back if there is another."""
            everyone: list[Any] = vars(trainer)["callbacks"]
            others = [callback for callback in everyone if callback is not self]
            if any(isinstance(callback, EnergyMonitor) for callback in others):
                vars(trainer)["callbacks"] = others  # the old list is being gone through
            else:
                super().setup(trainer, pl_module, stage)

    return [EnvironmentMonitor()]
