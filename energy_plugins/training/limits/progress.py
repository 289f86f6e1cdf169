"""How far limiting a training has come."""

from __future__ import annotations

from dataclasses import dataclass, field

from energy_plugins.training.limits.check import Kept
from energy_plugins.tune import Measurement


@dataclass(frozen=True)
class Tried:
    """A window, and what all ranks measured in it."""

    limit: float
    seconds: float
    measured: Measurement
    ranks: tuple[int, ...] = ()
    """Those that the limit was for; empty for all."""


@dataclass
class Progress:
    """How far it has come, for reports."""

    kept: Kept | None = None
    tried: list[Tried] = field(default_factory=list)
    searches: int = 0
    found: float | None = None
    drawn_w: float | None = None
    """Lately, of the GPU that draws most."""
    why: str = ""
    """Why no limit is kept."""
    search_s: float = 0.0
    """What windows of searches have taken so far, those that told nothing included."""
