"""What a report says of the micro-batch that a training ran with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from energy_plugins.measure.json_section import Section, read_fields
from energy_plugins.measure.report_parts import Part


@dataclass(frozen=True, kw_only=True)
class TriedMicroBatch(Part):
    """One size that was tried: what an optimizer step took with it, of all ranks; None where it told nothing."""

    size: int
    seconds: float = 0.0
    """For how long it was measured in all."""
    step_time_s: float | None = None
    step_energy_j: float | None = None
    saving: float | None = None
    """Share of the energy that it saves against the user's setting; below 0 where it costs more."""
    saving_sem: float | None = None
    """Its standard error."""
    level: str | None = None
    """At which level of the memory hierarchy a layer's activations live."""
    why: str | None = None
    """Why it cannot be used."""


@dataclass(frozen=True, kw_only=True)
class MicroBatchPart(Part):
    """The user's setting and the micro-batch chosen, and what was expected of it; None where it is not known.

    Sizes are samples of one rank. Shares are against the user's setting.
    """

    asked: str
    """What for, in words."""
    batch: int | None = None
    """Samples that the loader yields at once."""
    accumulation: int | None = None
    """How many of these are accumulated for an optimizer step."""
    grown: str = ""
    """What was changed in the training itself, where the user let its effective batch grow; empty if nothing was."""
    chosen: int | None = None
    """None if the user's setting was left alone."""
    source: str = ""
    """``search``, ``memory`` (and checked) or ``fixed``; empty if nothing was chosen."""
    expected_saving: float | None = None
    """Share of the energy of an optimizer step."""
    expected_slowdown: float | None = None
    """Share by which it takes longer; below 0 where it is shorter."""
    checked_beside: tuple[int, ...] = ()
    """Sizes beside the one that the search chose, which were compared with it once more under the power limit found."""
    saving_beside: float | None = None
    """What taking one of them saves there, as a share: part of the expected saving; 0 if none was better."""
    confidence: float | None = None
    """Probability that it saves, by the errors of the windows."""
    gradient_difference: float | None = None
    """By which share of their norm gradients differed that were computed both ways."""
    gradient_limit: float | None = None
    """What rounding may explain of that."""
    gradient_checks: int = 0
    """How often they were computed both ways, at the start and later."""
    check_s: float = 0.0
    """How much of the training passed in that."""
    steps_in_doubt: tuple[int, ...] = ()
    """First and last optimizer step of this run whose gradients may have differed before that was found, if any."""
    search_s: float = 0.0
    """How much of the training passed in windows of the search."""
    tried: tuple[TriedMicroBatch, ...] = ()
    """From the smallest."""
    explanation: tuple[str, ...] = ()
    """Sentences that say why this size."""
    outlook: tuple[str, ...] = ()
    """What a larger effective batch would save, which is never changed without being asked for."""
    why: str = ""
    """Why the user's setting was left alone, or is in force again."""

    @property
    def effective_batch(self) -> int | None:
        """One rank's samples of an optimizer step."""
        return None if self.batch is None or self.accumulation is None else self.batch * self.accumulation

    @classmethod
    def read(cls, section: Section) -> Self:
        """Read it from JSON; raises ReportError."""
        tried = tuple(TriedMicroBatch.read(one) for one in section.sections("tried"))
        known = section.with_defaults(
            {"checked_beside": [], "saving_beside": None, "gradient_checks": 0, "check_s": 0.0, "steps_in_doubt": []}
        )
        return cls(**read_fields(cls, known, "tried"), tried=tried)
