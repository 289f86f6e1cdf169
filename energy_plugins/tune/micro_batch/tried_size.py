"""What became of one micro-batch that a search tried."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TriedSize:
    """One size: what an optimizer step took with it, or why nothing is known."""

    size: int
    step_energy_j: float | None = None
    step_time_s: float | None = None
    saving: float | None = None
    """Share of the energy that it saves against the user's setting; below 0 where it costs more."""
    saving_sem: float | None = None
    """Its standard error."""
    seconds: float = 0.0
    """For how long it was measured in all."""
    level: str | None = None
    """At which level of the memory hierarchy a layer's activations live; None if not known."""
    why: str | None = None
    """Why it cannot be used; None if it can."""
