"""Joules of every training step, measured beside the training at next to no cost.

The names below are loaded on first use, so that importing the package opens no library and imports no framework:

* `EnergyConfig` says how a training is measured and reported;
* `EnergyMeter` measures a run, its steps and its spans of work;
* `Report` is what it found, a frozen value and a folder on disk;
* `visible_gpus` lists the GPUs that this process may use;
* `Kind` names what training was doing during a span;
* `CpuEstimate` says what the CPU is believed to draw, for machines that do not measure it.

Framework plugins are modules named after their framework, such as `energy_plugins.lightning`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from energy_plugins.config import EnergyConfig
    from energy_plugins.measure.cpu_estimate import CpuEstimate
    from energy_plugins.measure.devices import visible_gpus
    from energy_plugins.measure.meter import EnergyMeter
    from energy_plugins.measure.report import Report
    from energy_plugins.measure.spans import Kind

__version__ = "0.1.0"

__all__ = ["CpuEstimate", "EnergyConfig", "EnergyMeter", "Kind", "Report", "__version__", "visible_gpus"]

_HOMES = {
    "CpuEstimate": "energy_plugins.measure.cpu_estimate",
    "EnergyConfig": "energy_plugins.config",
    "EnergyMeter": "energy_plugins.measure.meter",
    "Kind": "energy_plugins.measure.spans",
    "Report": "energy_plugins.measure.report",
    "visible_gpus": "energy_plugins.measure.devices",
}


# Hidden from type checkers: to them it would make every misspelt name a valid one.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import the module that holds a public name when the name is first asked for."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
