"""What a report says of the power limit that a training ran under."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from energy_plugins.measure.json_section import Section, read_fields
from energy_plugins.measure.report_parts import Part


@dataclass(frozen=True, kw_only=True)
class TriedLimit(Part):
    """Steps under one limit, as means over a window; of all ranks."""

    limit: float
    """W, or MHz of locked clocks."""
    seconds: float
    """How long it was asked to be."""
    step_time_s: float
    step_energy_j: float
    drawn_w: float
    """Of the GPU that drew most, of those that it was for."""
    ranks: tuple[int, ...] = ()
    """Those that it was for, because they waited for a slower one; empty for all."""

    @classmethod
    def read(cls, section: Section) -> Self:
        """Read it from JSON; raises ReportError."""
        return super().read(section.with_defaults({"ranks": []}))


@dataclass(frozen=True, kw_only=True)
class LimitPart(Part):
    """The limit found and the one chosen, what was expected of it, and what became of it; None where it is not known.

    Limits are those of one GPU, in `unit`. Shares are against the limit found.
    """

    asked: str
    """What for, in words."""
    unit: str = "W"
    back_end: str = ""
    """Who sets it; ``advice`` where nobody may."""
    found: float | None = None
    chosen: float | None = None
    """Of this rank."""
    by_rank: tuple[float, ...] = ()
    """That of each rank, where those that wait for a slower one have another; empty where all have the same."""
    source: str = ""
    """``search``, ``memory`` (and checked) or ``fixed``; empty if nothing was chosen."""
    expected_saving: float | None = None
    """Share of the energy of steps."""
    expected_slowdown: float | None = None
    """Share by which a step takes longer."""
    confidence: float | None = None
    """Probability that it saves and keeps the bound, by the errors of the windows."""
    binding: bool | None = None
    """Whether it lowers the drawn power."""
    drawn_w: float | None = None
    """Mean power in the last steps looked at, of the GPU that drew most."""
    searches: int = 0
    search_s: float = 0.0
    """How much of the training passed in windows, those at the limit found included."""
    turn_s: float = 0.0
    """What setting limits took of the training thread."""
    tried: tuple[TriedLimit, ...] = ()
    """The windows, in their order."""
    put_back: str = ""
    """What became of the limit in the end."""
    why: str = ""
    """Why nothing was chosen, or the search was given up."""
    advice: str = ""
    """What would be needed, where nothing may be set."""

    @classmethod
    def read(cls, section: Section) -> Self:
        """Read it from JSON; raises ReportError."""
        tried = tuple(TriedLimit.read(one) for one in section.sections("tried"))
        return cls(**read_fields(cls, section.with_defaults({"by_rank": []}), "tried"), tried=tried)
