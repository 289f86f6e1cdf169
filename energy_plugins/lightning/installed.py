"""The Lightning in use: the one already imported, else the one installed; ``lightning`` or ``pytorch_lightning``."""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch import Callback, LightningModule
    from lightning.pytorch.callbacks import GradientAccumulationScheduler, Timer
    from lightning.pytorch.strategies import ParallelStrategy
    from lightning.pytorch.utilities import CombinedLoader
else:

    def _installed() -> ModuleType:
        names = ("lightning.pytorch", "pytorch_lightning")
        for name in sorted(names, key=lambda name: name not in sys.modules):
            with suppress(ModuleNotFoundError):
                return import_module(name)
        raise ImportError("Lightning is missing: pip install energy-plugins[lightning]")

    _lightning = _installed()
    Callback = _lightning.Callback
    LightningModule = _lightning.LightningModule
    GradientAccumulationScheduler = _lightning.callbacks.GradientAccumulationScheduler
    ParallelStrategy = _lightning.strategies.ParallelStrategy
    Timer = _lightning.callbacks.Timer
    CombinedLoader = _lightning.utilities.CombinedLoader
    MisconfigurationException = _lightning.utilities.exceptions.MisconfigurationException

__all__ = [
    "Callback",
    "CombinedLoader",
    "GradientAccumulationScheduler",
    "LightningModule",
    "MisconfigurationException",
    "ParallelStrategy",
    "Timer",
]
