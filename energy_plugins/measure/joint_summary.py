"""What a report's text says of the micro-batch and the power limit together."""

from __future__ import annotations

from collections.abc import Callable

from energy_plugins.measure.limit_part import LimitPart
from energy_plugins.measure.micro_batch_part import MicroBatchPart
from energy_plugins.measure.quantity import percent


def joint_saving(batch: MicroBatchPart | None, limit: LimitPart | None) -> float | None:
    """Return which share of the energy of steps both are expected to save together, None unless both were searched for.

    That of the limit is of what is left with the micro-batch: it was searched for afterwards.
    """
    if batch is None or limit is None or batch.expected_saving is None or limit.expected_saving is None:
        return None
    return 1 - (1 - batch.expected_saving) * (1 - limit.expected_saving)


def joint_lines(
    batch: MicroBatchPart | None, limit: LimitPart | None, entry: Callable[[str, str], list[str]]
) -> list[str]:
    """Return lines, none unless both were searched for; ``entry`` makes them of a label and a text."""
    text = joint_text(batch, limit)
    return entry("together", text) if text else []


def joint_text(batch: MicroBatchPart | None, limit: LimitPart | None) -> str:
    """Return the same as one text, empty unless both were searched for."""
    saving = joint_saving(batch, limit)
    if saving is None or batch is None or limit is None:
        return ""
    each = f"{percent(batch.expected_saving or 0.0)} by the micro-batch"
    rest = f"{percent(limit.expected_saving or 0.0)} of the rest by the power limit"
    return f"{percent(saving)} less energy expected of both: {each}, {rest}{_checked(batch)}"


def _checked(batch: MicroBatchPart) -> str:
    if not batch.checked_beside or batch.saving_beside is None:
        return ""
    sizes = ", ".join(map(str, batch.checked_beside))
    if batch.saving_beside == 0.0:
        return f" ({sizes} at once compared once more under the limit: none is better)"
    better = f"{batch.chosen} at once instead of what was found first is better by {percent(batch.saving_beside)}"
    return f" ({sizes} at once compared once more under the limit: {better})"
