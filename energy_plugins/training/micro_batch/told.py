"""What a report is told of the micro-batch of a training, from what is known of it: pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from energy_plugins.measure.micro_batch_part import MicroBatchPart, TriedMicroBatch
from energy_plugins.training.micro_batch.doubt import Doubt
from energy_plugins.training.micro_batch.gradient_check import GradientCheck
from energy_plugins.training.micro_batch.plan import MicroBatchPlan
from energy_plugins.training.micro_batch.searched import Searched
from energy_plugins.tune import MicroBatchChoice, effective_batch_outlook, rule_to_try
from energy_plugins.tune.beside import Beside


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known beside the search."""

    fixed: int | None
    """The size that was asked for, None if one is searched for."""
    setting: MicroBatchPlan | None
    grown: str
    check: GradientCheck | None
    checks: int
    """How often gradients were compared."""
    check_s: float
    doubt: Doubt | None
    why: str
    """Why nothing is changed."""
    reasons: tuple[str, ...]
    """Why sizes were struck out."""
    optimizer: str | None
    """The name of its class; None if that is not known."""
    ranks: int
    fits: int | None
    """The most samples at once that surely fit; None if that is not known."""


def told(known: Known, searched: Searched | None) -> MicroBatchPart:
    """Return what a report says; ``searched`` is None as long as nothing is decided, or if it was declined."""
    setting, check, doubt = known.setting, known.check, known.doubt
    why = known.why if searched is None else searched.why
    why = why or ("" if doubt is None else doubt.why())
    part = MicroBatchPart(
        asked="least energy" if known.fixed is None else f"{known.fixed} samples at once",
        batch=None if setting is None else setting.batch,
        accumulation=None if setting is None else setting.accumulation,
        grown=known.grown,
        gradient_difference=None if check is None else check.difference,
        gradient_limit=None if check is None else check.limit,
        gradient_checks=known.checks,
        check_s=known.check_s,
        steps_in_doubt=() if doubt is None else doubt.steps,
        why=why,
    )
    if searched is None or not searched.is_over or why:
        return part
    if known.fixed is not None:
        return replace(part, chosen=known.fixed, source="fixed")
    choice = searched.choice
    if choice is None:
        return part
    beside = searched.beside or Beside(choice.size)
    return replace(
        part,
        chosen=beside.size,
        source=searched.source,
        expected_saving=1 - (1 - choice.expected_saving) * (1 - beside.saving),
        expected_slowdown=(1 + choice.expected_slowdown) * (1 + beside.slowdown) - 1,
        checked_beside=tuple(searched.looked_at),
        saving_beside=None if searched.beside is None else beside.saving,
        confidence=choice.confidence,
        search_s=searched.search_s,
        tried=_tried(choice.tried),
        explanation=(*choice.explanation, *known.reasons),
        outlook=_outlook(known, choice),
    )


def _tried(sizes: Sequence[object]) -> tuple[TriedMicroBatch, ...]:
    return tuple(TriedMicroBatch(**vars(one)) for one in sizes)


def _outlook(known: Known, choice: MicroBatchChoice) -> tuple[str, ...]:
    """Say what a larger effective batch would save, unless it has been made larger."""
    if choice.curve is None or known.setting is None or known.grown:
        return ()
    return effective_batch_outlook(
        choice.curve,
        share=known.setting.share,
        micro_batch=choice.size,
        rule=rule_to_try(known.optimizer),
        ranks=known.ranks,
        fits=known.fits,
    ).sentences
