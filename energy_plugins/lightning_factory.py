"""Lightning's entry point: every Trainer asks here for callbacks, and gets one only where the environment wants it."""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from energy_plugins.lightning import EnergyMonitor, MicroBatchTuner


def callbacks() -> list[EnergyMonitor | MicroBatchTuner]:
    """Return a monitor if a variable ``ENERGY_*`` of the configuration is set, and what else is asked for.

    An exception here would break every Trainer of this installation, so there is none.
    """
    try:
        return _wanted() if any(name.startswith("ENERGY_") for name in os.environ) else []
    except Exception as error:  # noqa: BLE001 - see above
        with suppress(RuntimeWarning):  # where warnings are errors
            warnings.warn(f"energy: Lightning's trainings are not measured: {error}", RuntimeWarning, stacklevel=2)
        return []


def _wanted() -> list[EnergyMonitor | MicroBatchTuner]:
    from energy_plugins.config import FILE_VARIABLE, VARIABLES, effective  # noqa: PLC0415 - few Trainers get here

    asked = any(os.environ.get(name) for name in (*VARIABLES, FILE_VARIABLE))
    config = effective().config if asked else None
    wanted: list[EnergyMonitor | MicroBatchTuner] = []
    if config is not None and config.measure.enabled:
        from energy_plugins.lightning.monitor import EnvironmentMonitor  # noqa: PLC0415

        wanted.append(EnvironmentMonitor())
    if config is not None and config.micro_batch.enabled:
        from energy_plugins.lightning.micro_batch import EnvironmentTuner  # noqa: PLC0415

        wanted.append(EnvironmentTuner())
    return wanted
