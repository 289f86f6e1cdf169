"""Joules for Lightning: `EnergyMonitor` measures fits; `PowerLimitTuner` and `MicroBatchTuner` save some."""

try:
    import torch  # noqa: F401 - Lightning is nothing without it
except ModuleNotFoundError as error:
    raise ImportError("Lightning is missing: pip install energy-plugins[lightning]") from error

from energy_plugins.lightning.micro_batch import MicroBatchTuner
from energy_plugins.lightning.monitor import EnergyMonitor
from energy_plugins.lightning.power_limit import PowerLimitTuner

__all__ = ["EnergyMonitor", "MicroBatchTuner", "PowerLimitTuner"]
