"""The micro-batch that a search chose, what is to be expected of it, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from energy_plugins.tune.limit.decision import WORTH
from energy_plugins.tune.micro_batch.decision import chosen
from energy_plugins.tune.micro_batch.explained import explained
from energy_plugins.tune.micro_batch.fixed_cost import FixedCost, SizeCost
from energy_plugins.tune.micro_batch.outlook import SizeOutlook, size_outlook
from energy_plugins.tune.micro_batch.task import MicroBatchTask, OutOfMemory, Refused, SizeWindow
from energy_plugins.tune.micro_batch.tried_size import TriedSize


@dataclass(frozen=True)
class MicroBatchChoice:
    """What to run, and what is to be expected of it against the user's setting."""

    size: int
    expected_saving: float
    """Share of an optimizer step's energy; 0 where the user's setting is kept."""
    confidence: float
    """Probability, by the errors of the windows, that it saves; where the user's setting is kept, that none of the
    sizes tried saves more than half a per cent."""
    tried: tuple[TriedSize, ...]
    """Every size that was asked for, from the smallest."""
    explanation: tuple[str, ...]
    """Sentences that say why."""
    expected_slowdown: float = 0.0
    """By which share a step takes longer; below 0 where it is shorter."""
    curve: FixedCost | None = None
    """What a micro-batch costs whatever its size; None if fewer than two sizes ran."""
    windows: tuple[SizeWindow, ...] = ()


def choose(
    task: MicroBatchTask, windows: Sequence[SizeWindow], failed: Sequence[OutOfMemory | Refused]
) -> MicroBatchChoice:
    """Return the choice."""
    if not windows:
        tried = _tried(task, windows, None, failed)
        return MicroBatchChoice(task.start, 0.0, 0.0, tried, explained(task, task.start, tried, None))
    view = size_outlook(task, windows)
    size = chosen(view)
    over, slower = view.over_reference(size), view.time.between(size, view.reference)
    tried = _tried(task, windows, view, failed)
    curve = FixedCost.fit([_cost(task, view, one) for one in view.sizes])
    return MicroBatchChoice(
        size=size,
        expected_saving=-math.expm1(over.mean),
        confidence=over.under(0.0) if size != view.reference else _none_saves(view),
        tried=tried,
        explanation=explained(task, size, tried, curve),
        expected_slowdown=math.expm1(slower.mean),
        curve=curve,
        windows=tuple(windows),
    )


def _none_saves(view: SizeOutlook) -> float:
    others = [view.over_reference(size) for size in view.sizes if size != view.reference]
    return min((1 - other.under(-WORTH) for other in others), default=1.0)


def _cost(task: MicroBatchTask, view: SizeOutlook, size: int) -> SizeCost:
    count = task.share / size
    return SizeCost(size, view.step_time_s(size) / count, view.step_energy_j(size) / count)


def _tried(
    task: MicroBatchTask,
    windows: Sequence[SizeWindow],
    view: SizeOutlook | None,
    failed: Sequence[OutOfMemory | Refused],
) -> tuple[TriedSize, ...]:
    """Return what became of each size."""
    found = [TriedSize(one.size, why="out of memory" if isinstance(one, OutOfMemory) else one.why) for one in failed]
    if view is not None:
        for size in view.sizes:
            over = view.over_reference(size)
            found.append(
                TriedSize(
                    size,
                    step_energy_j=view.step_energy_j(size),
                    step_time_s=view.step_time_s(size),
                    saving=-math.expm1(over.mean),
                    saving_sem=math.exp(over.mean) * over.sd,
                    seconds=math.fsum(window.seconds for window in windows if window.size == size),
                    level=task.level_of(size),
                )
            )
    return tuple(sorted(found, key=lambda one: one.size))
