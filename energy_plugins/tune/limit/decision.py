"""Where to measure next, or that enough is known; and what to choose then. Pure.

From the start downwards in coarse steps, until a limit hurts: it is too slow, or costs more than a higher one. Then at
the limit that seems best, until its slowdown is known as well as it is promised, and at whatever may yet be better.
What seems best is asked again after each window, so a first impression is corrected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

import numpy as np

from energy_plugins.tune.limit.measurement import Window
from energy_plugins.tune.limit.outlook import LEAST_FALL, Outlook
from energy_plugins.tune.limit.task import SURE, Task

WORTH = 0.005
"""A smaller saving is not looked for. Ours: as much as the noise of one window of 5 s on a quiet machine."""
COARSE = 1 / 8
"""Of the start limit: the largest step down. A seventh off an H100's 700 W makes steps 3.5 % longer (arXiv:2603.16164,
arXiv:2604.11391): that is about what may be asked for."""
UNEXPLAINED = 3.0
"""Standard errors by which a limit must save, and `WORTH` beyond, that does not lower the power. As far as is known it
cannot save; and the best of ten limits that do nothing seems to save by 1.5 (the mean of the largest of ten normal
values). Ours: twice that."""
HUMP = 0.05
"""So much slower than allowed a single limit may be without ending the descent. Time is not monotone in the limit:
where clocks or the host change beside it, it scatters by some per cent, and the next limit is fast again. Chosen on the
V100 trainings of Zeus alone: from 0.04 up, what is saved there is within 0.2 points of the most that any value gives.
`benchmarks/zeus_traces.py` prints the A40's apart."""


class Side(Enum):
    """Of the valley: whether the lowest limit tried is still on its way down."""

    INSIDE = auto()
    OUTSIDE = auto()
    UNDECIDED = auto()


def next_limit(task: Task, windows: Sequence[Window], view: Outlook) -> float | None:
    """Return the limit to measure next, None if enough is known."""
    tried = sorted({window.limit for window in windows})
    if len(tried) == 1:
        return _lower(task, task.start, coarse(task)) if task.lowest < task.start else None
    best = leader(task, view)
    edge = side(task, view, -1, best)
    if edge is Side.UNDECIDED:
        return tried[0]
    if tried[0] > task.lowest:
        above = next(limit for limit in tried if limit >= min(tried[0] + task.resolution, task.start))
        if edge is Side.INSIDE:
            return _lower(task, tried[0], _stride(task, view, above))
        if _may_be_hump(task, view, side(task, view, view.place(above), best)):
            return _lower(task, tried[0], coarse(task))
    if not _decided(task, view, best):
        return float(view.limits[best])
    return _rival(task, view, tried[:-1], best)


def coarse(task: Task) -> float:
    """Return the largest step down: a whole number of the resolution."""
    return max(round(COARSE * task.start / task.resolution), 1) * task.resolution


def leader(task: Task, view: Outlook, caution: float = 0.0) -> int:
    """Return the candidate that costs least among those that keep the bound; the start if there is none.

    With ``caution`` 1 what is known worse than it is promised must be faster by as much.
    """
    slow = view.time.mean + caution * SURE * np.maximum(view.time.sd - task.known, 0.0)
    allowed = np.asarray(slow <= task.bound, dtype=np.bool_)
    if task.must_bind:
        allowed &= view.binds
    allowed[0] = True
    return int(np.argmin(np.where(allowed, view.cost.mean, math.inf)))


def side(task: Task, view: Outlook, place: int, best: int) -> Side:
    """Return where a candidate lies."""
    if view.power.mean[place] > -LEAST_FALL:
        return Side.INSIDE  # what does not bind cannot hurt: its times scatter for other reasons
    if view.time.low[place] > task.bound or view.cost.low[place] > view.cost.high[best]:
        return Side.OUTSIDE
    if view.time.high[place] <= task.bound:
        return Side.INSIDE
    if view.time.sd[place] > task.known:
        return Side.UNDECIDED
    return Side.INSIDE if view.time.mean[place] + view.time.sd[place] <= task.bound else Side.OUTSIDE


def _lower(task: Task, limit: float, stride: float) -> float:
    lower = task.on_grid(limit - stride)
    return lower if lower < limit else max(limit - task.resolution, task.lowest)


def _stride(task: Task, view: Outlook, above: float) -> float:
    """Return how far down to go: to where time would reach its bound if it went on as it went between the last two."""
    rise = view.time.mean[-1] - view.time.mean[view.place(above)]
    if not view.binds[-1] or rise <= 0:
        return coarse(task)
    needed = (task.bound - view.time.mean[-1]) / rise * (above - view.limits[-1])
    return float(np.clip(needed, task.resolution, coarse(task)))


def _may_be_hump(task: Task, view: Outlook, above: Side) -> bool:
    """Return whether to look past a limit that hurts, once: the one above it does not, and it does not hurt much."""
    return above is Side.INSIDE and bool(view.time.mean[-1] <= task.bound + HUMP)


def _rival(task: Task, view: Outlook, tried: Sequence[float], best: int) -> float | None:
    """Return the limit that may yet be better than the best, None if there is none."""
    places = [view.place(limit) for limit in tried]
    possible = [
        place
        for place in places
        if view.time.low[place] <= task.bound
        and view.cost.low[place] < view.cost.mean[best] - WORTH
        and view.cost.sd[place] > task.known
        and not (task.must_bind and view.power.low[place] >= 0)
    ]
    if not possible:
        return None
    return float(view.limits[min(possible, key=lambda place: float(view.cost.low[place]))])


def _decided(task: Task, view: Outlook, best: int) -> bool:
    """Return whether the best is known well enough: its slowdown where the bound is near, else its cost."""
    if best == 0:
        return True
    if view.time.high[best] + task.known >= task.bound:
        return bool(view.time.sd[best] <= task.known)
    return bool(view.cost.sd[best] <= 2 * task.known)


@dataclass(frozen=True)
class LimitChoice:
    """What a search chose, in the unit of its task, and what is to be expected of it against the start limit."""

    limit: float
    expected_saving: float
    """Share of the energy; 0 where the limit does not bind, whatever was measured."""
    expected_slowdown: float
    """Share by which a step takes longer; never below 0 where the limit does not bind, whatever was measured."""
    confidence: float
    """Probability, by the errors of the windows, that it keeps the bound to within the task's promise; where it binds,
    that it saves, too: the smaller one."""
    binding: bool
    """Whether it lowers the drawn power, by more than `LEAST_FALL`; never where the start limit is kept."""
    measurements: tuple[Window, ...]


def choose(task: Task, windows: Sequence[Window], view: Outlook) -> LimitChoice:
    """Return the choice: what seems best, but the start limit unless it surely saves."""
    best = leader(task, view, caution=1.0)
    if not view.binds[best] and view.cost.mean[best] + UNEXPLAINED * view.cost.sd[best] >= -WORTH:
        best = leader(replace(task, must_bind=True), view, caution=1.0)
    if best == 0 or view.cost.high[best] >= 0:
        return LimitChoice(task.start, 0.0, 0.0, 1.0, binding=False, measurements=tuple(windows))
    binding = bool(view.binds[best])
    slowdown = math.expm1(view.time.mean[best])
    keeps = _below(task.bound + task.promise, float(view.time.mean[best]), float(view.time.sd[best]))
    saves = _below(0.0, float(view.cost.mean[best]), float(view.cost.sd[best]))
    return LimitChoice(
        limit=float(view.limits[best]),
        expected_saving=-math.expm1(view.energy.mean[best]) if binding else 0.0,
        expected_slowdown=slowdown if binding else max(slowdown, 0.0),
        confidence=min(keeps, saves) if binding else keeps,
        binding=binding,
        measurements=tuple(windows),
    )


def _below(bound: float, mean: float, sd: float) -> float:
    """Return the probability that a normal variable is below ``bound``."""
    return 0.5 * math.erfc((mean - bound) / (sd * math.sqrt(2)))
