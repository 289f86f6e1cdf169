"""The micro-batches beside the chosen one: whether one of them is better under a limit found since. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from energy_plugins.tune.micro_batch.choice import MicroBatchChoice
from energy_plugins.tune.micro_batch.decision import chosen
from energy_plugins.tune.micro_batch.outlook import size_outlook
from energy_plugins.tune.micro_batch.task import MicroBatchTask, SizeWindow


@dataclass(frozen=True)
class Beside:
    """What to run, and what is to be expected of it against the size that was chosen before, under the same limit."""

    size: int
    saving: float = 0.0
    """Share of the energy of an optimizer step; 0 if none was better."""
    slowdown: float = 0.0
    """Share by which a step takes longer; below 0 where it is shorter."""


def to_measure(batch: MicroBatchChoice) -> tuple[int, ...]:
    """Return what to measure in turn: the sizes beside the chosen one, each between two windows of that."""
    ran = [one.size for one in batch.tried if one.why is None]
    beside = [size for pair in pairwise(ran) if batch.size in pair for size in pair if size != batch.size]
    return (batch.size, *(size for one in beside for size in (one, batch.size))) if beside else ()


def best_beside(task: MicroBatchTask, size: int, windows: Sequence[SizeWindow], *, slack: float) -> Beside:
    """Return the size to run: ``size``, unless another surely saves.

    ``slack`` is by how much steps may become longer than with ``size``, as the logarithm of a ratio.
    """
    if not windows:
        return Beside(size)
    view = size_outlook(replace(task, start=size), windows)
    best = chosen(view)
    slower = view.time.between(best, size).mean
    if best == size or slower > slack:
        return Beside(size)
    return Beside(best, -math.expm1(view.over_reference(best).mean), math.expm1(slower))
