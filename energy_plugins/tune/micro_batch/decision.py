"""Which micro-batch to measure next, or that enough is known; and which to choose then. Pure.

From the user's setting upwards, size by size, until one surely costs more than the best or does not fit; downwards only
if that seems to save nothing, or if a smaller one's activations would live at a faster level of the memory. Then those
that may be the best, until they are told apart.
"""

from __future__ import annotations

from collections.abc import Sequence

from energy_plugins.tune.limit.decision import HUMP, WORTH
from energy_plugins.tune.limit.task import SURE
from energy_plugins.tune.micro_batch.outlook import SizeOutlook
from energy_plugins.tune.micro_batch.task import MicroBatchTask, OutOfMemory, Refused

SURELY = 2.4
"""Standard errors by which a size must save. Of seven that do nothing one seems to save by 1.645 in three of ten
searches, by this in one of twenty."""
KNOWN = WORTH / 2
"""Standard error of the difference of two sizes at which it is known: about twice is what is worth looking for."""

Failed = Sequence[OutOfMemory | Refused]


def open_sizes(task: MicroBatchTask, failed: Failed) -> list[int]:
    """Return the candidates that may be run: where one does not fit, no larger one does."""
    refused = {one.size for one in failed}
    too_large = min((one.size for one in failed if isinstance(one, OutOfMemory)), default=task.share + 1)
    return [size for size in task.candidates if size < too_large and size not in refused]


def next_size(task: MicroBatchTask, failed: Failed, view: SizeOutlook) -> tuple[int, bool] | None:
    """Return the size to measure next and whether it is new, None if enough is known."""
    usable, tried = open_sizes(task, failed), view.sizes
    above = [size for size in usable if size > tried[-1]]
    if above and not _hurts(view, tried[::-1]):
        return above[0], True
    smaller = _smaller(task, view, [size for size in usable if size < tried[0]])
    if smaller is not None:
        return smaller, True
    contenders = _contenders(view, tried)
    if len(contenders) == 1 and not _only_glimpsed(view, view.leader):
        return None
    return max(contenders, key=lambda size: (view.cost.sd(size), -size)), False


def chosen(view: SizeOutlook) -> int:
    """Return the size that costs least, of equals the smallest; the reference unless another surely saves."""
    saving = [size for size in view.sizes if _surely_saves(view, size)]
    if not saving:
        return view.reference
    best = min(saving, key=lambda size: view.over_reference(size).mean)
    return min(size for size in saving if _equals(view, size, best))


def _hurts(view: SizeOutlook, from_edge: Sequence[int]) -> bool:
    """Return whether the outermost size surely costs more than the best: much more, or the one before it does, too."""

    def dearer(size: int) -> bool:
        over = view.over_leader(size)
        return over.mean > SURE * over.sd and over.mean > WORTH

    edge = from_edge[0]
    if not dearer(edge):
        return False
    return view.over_leader(edge).mean > HUMP or dearer(from_edge[1])


def _smaller(task: MicroBatchTask, view: SizeOutlook, below: Sequence[int]) -> int | None:
    """Return the smaller size that is worth a look, None if none is.

    Where larger ones seem to save, fixed costs rule, which small ones have more of: then only one at another level of
    memory is.
    """
    if view.leader > view.reference and view.over_reference(view.leader).mean < -WORTH:
        here = task.level_of(view.reference)
        nearer = [size for size in below if task.level_of(size) != here]
        return nearer[-1] if nearer and view.sizes[0] == view.reference else None
    return below[-1] if below and not _hurts(view, view.sizes) else None


def _surely_saves(view: SizeOutlook, size: int) -> bool:
    over = view.over_reference(size)
    return size != view.reference and over.mean < -WORTH and over.mean + SURELY * over.sd < 0


def _equals(view: SizeOutlook, size: int, best: int) -> bool:
    """Return whether a size costs no more than the best by what matters, as far as is known to twice of that."""
    over = view.cost.between(size, best)
    return size == best or (over.mean <= WORTH and over.mean + over.sd <= 2 * WORTH)


def _contenders(view: SizeOutlook, tried: Sequence[int]) -> list[int]:
    """Return the leader, those of which it is not known whether they are as good, and what it must surely beat."""
    leader = view.leader
    unbeaten = view.reference if view.over_reference(leader).sd > KNOWN and not _surely_saves(view, leader) else leader
    return [size for size in tried if size in {leader, unbeaten} or _unclear(view, size, leader)]


def _only_glimpsed(view: SizeOutlook, size: int) -> bool:
    return size in view.seen_once and view.over_reference(size).sd > KNOWN


def _unclear(view: SizeOutlook, size: int, leader: int) -> bool:
    over = view.cost.between(size, leader)
    # A larger one that is as good would not be chosen: it must be better by what is worth it.
    line = WORTH if size < leader else 0.0
    return over.sd > KNOWN and abs(over.mean - line) <= SURE * over.sd
