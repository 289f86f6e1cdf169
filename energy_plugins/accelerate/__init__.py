"""Joules for accelerate: one line over a training loop of one's own, or a tracker, turns what it does into marks."""

try:
    import accelerate  # noqa: F401
    import torch  # noqa: F401 - without it accelerate has nothing to train with
except ModuleNotFoundError as error:
    raise ImportError("accelerate is missing: pip install energy-plugins[accelerate]") from error

from energy_plugins.accelerate.attached import Attached, attach, attached
from energy_plugins.accelerate.micro_batched import micro_batched
from energy_plugins.accelerate.plugin import EnergyPlugin
from energy_plugins.accelerate.tracker import EnergyTracker

__all__ = ["Attached", "EnergyPlugin", "EnergyTracker", "attach", "attached", "micro_batched"]
