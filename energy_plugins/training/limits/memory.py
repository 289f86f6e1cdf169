"""Limits that searches chose, remembered for each kind of training: ``power_limits.json`` in the cache."""

from __future__ import annotations

from pathlib import Path

from energy_plugins.training.choice_memory import ChoiceMemory, Kind
from energy_plugins.training.limits.check import Kept

__all__ = ["Kind", "recall", "remember", "store_path"]

_LIMITS = ChoiceMemory("power_limits.json", "limits", "limit", "power limit", "power limits", most=1e5)
"""No limit in watts and no clock in megahertz is as high."""


def recall(kind: Kind) -> float | None:
    """Return the limit that was chosen for such a training, None if none is known; trouble is a warning."""
    return _LIMITS.recall(kind)


def remember(kind: Kind, kept: Kept) -> None:
    """Keep a choice for the next training of this kind; trouble is a warning."""
    _LIMITS.remember(kind, kept.limit)


def store_path() -> Path:
    """Return where they are kept. Raises RuntimeError if there is no home folder."""
    return _LIMITS.path()
