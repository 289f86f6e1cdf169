"""What a report's text says of the micro-batch."""

from __future__ import annotations

from collections.abc import Callable

from energy_plugins.measure.micro_batch_part import MicroBatchPart
from energy_plugins.measure.quantity import duration, percent

_FROM = {"search": "searched for", "memory": "remembered, and checked", "fixed": "as asked for"}


def micro_batch_lines(part: MicroBatchPart | None, entry: Callable[[str, str], list[str]]) -> list[str]:
    """Return lines, none if no micro-batch was asked for; ``entry`` makes them of a label and a text."""
    if part is None:
        return []
    texts = [_chosen(part), _compared(part), _expected(part), _searched(part), *part.explanation, *part.outlook]
    texts = [text for text in texts if text]
    return [line for at, text in enumerate(texts) for line in entry("micro-batch" if at == 0 else "", _plain(text))]


def _chosen(part: MicroBatchPart) -> str:
    setting = "" if part.batch is None else f" {part.batch} x {part.accumulation}"
    if part.chosen is None:
        why = part.why or "the training ended before it was decided"
        return f"your setting{setting} was left alone ({part.asked}): {why}"
    if part.chosen == part.batch and part.source != "fixed":
        return f"your setting{setting}, for none surely saves more ({part.asked})"
    effective = part.effective_batch
    same = "" if effective is None else f"; {effective} samples a step and rank as before, with the same gradients"
    off = _off(part)
    return f"{part.chosen} samples at once instead of{setting}, {_FROM.get(part.source, part.source)}{same}{off}"


def _off(part: MicroBatchPart) -> str:
    difference, limit = part.gradient_difference, part.gradient_limit
    if difference is None or limit is None:
        return ""
    if difference > limit:
        return f", but for {difference:.2g} of their norm, AS YOU ALLOWED"
    return f" (they differ by {difference:.1g} of their norm, which is rounding)"


def _compared(part: MicroBatchPart) -> str:
    if part.gradient_checks < 2 or part.chosen is None:
        return ""
    return f"gradients compared {part.gradient_checks} times in {duration(part.check_s)}, at the start and later"


def _expected(part: MicroBatchPart) -> str:
    saving, slowdown, confidence = part.expected_saving, part.expected_slowdown, part.confidence
    if saving is None or slowdown is None or confidence is None or part.chosen == part.batch:
        return ""
    sure = f"{percent(min(confidence, 0.999), 1)} sure"
    pace = f"{percent(abs(slowdown))} {'longer' if slowdown > 0 else 'shorter'} steps"
    sems = [one.saving_sem for one in part.tried if one.size == part.chosen and one.saving_sem is not None]
    bound = f" (+- {percent(1.96 * sems[0])})" if sems else ""
    return f"expected of it: {percent(saving)} less energy{bound}, {pace} ({sure})"


def _searched(part: MicroBatchPart) -> str:
    if not part.tried:
        return ""
    savings = [f"{one.size}: {_result(one.saving, one.why)}" for one in part.tried]
    return f"tried in {duration(part.search_s)} (energy of a step): {', '.join(savings)}"


def _result(saving: float | None, why: str | None) -> str:
    return why or "not known" if saving is None else f"{(0.0 - saving) * 100:+.1f} %"


def _plain(text: str) -> str:
    """Return it with nothing that a terminal would act on: a file may say anything."""
    return "".join(char if char.isprintable() else "?" for char in text)
