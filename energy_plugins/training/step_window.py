"""What steps took and drew in a window of time, from the late figures of each: robust, and pure but for one queue."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from energy_plugins.measure.live import StepBatch

_SCALE = 1.4826
"""By which the median absolute deviation of normal values is smaller than their standard deviation."""
_FAR = 6.0
"""Standard deviations from the median beyond which a step is none of the usual ones."""
_LONG = 0.5
"""It must also be longer than the median by this share: equal steps deviate by next to nothing."""
_RARE = 0.1
"""What is more frequent belongs to the work: the last of every few batches may be the one that optimises."""


class Told(NamedTuple):
    """What one rank tells the others of a window; NaN where it does not know. All are means over its steps."""

    covered: float
    """1 once the figures reach to the end of the window."""
    time_s: float = math.nan
    energy_j: float = math.nan
    """Of all its GPUs."""
    time_sem: float = math.nan
    energy_sem: float = math.nan
    drawn_w: float = math.nan
    """Of the one that draws most."""
    backward_s: float = math.nan
    """Of the steps whose phases were marked, waits for other ranks included."""
    backward_sem: float = math.nan

    @property
    def known(self) -> bool:
        """Whether there was something to tell, be it without phases."""
        return not any(math.isnan(value) for value in self[: self._fields.index("backward_s")])

    @classmethod
    def of(cls, steps: StepBatch, least: int) -> Self:
        """Return what these steps tell, all of them of the window; at least so many."""
        seconds = ((steps.end_ns - steps.start_ns) * 1e-9).astype(np.float64)
        keep = _usual(seconds) if len(seconds) else np.zeros(0, bool)
        seconds, joules = seconds[keep], steps.energy_j[:, keep]
        if len(seconds) < least or not np.isfinite(joules).all():
            return cls(1.0)
        each_j: NDArray[np.float64] = joules.sum(axis=0)
        backward_s = steps.backward_s[keep]
        backward_s = backward_s[np.isfinite(backward_s)]
        marked = len(backward_s) >= least
        return cls(
            1.0,
            time_s=float(seconds.mean()),
            energy_j=float(each_j.mean()),
            time_sem=_sem(seconds),
            energy_sem=_sem(each_j),
            drawn_w=float((joules.sum(axis=1) / seconds.sum()).max()) if len(joules) else 0.0,
            backward_s=float(backward_s.mean()) if marked else math.nan,
            backward_sem=_sem(backward_s) if marked else math.nan,
        )


class WindowNs(NamedTuple):
    """A window in time: the steps that end in it, and began after the last change of the limit had settled."""

    opened_ns: int
    closed_ns: int
    settled_ns: int


class Heard:
    """The steps of a run that are not judged yet.

    Args:
        queue: rows of the report come here.
        ends: returns before which row each optimizer step began, None where a row is a step.
        first: which row is the first to come.
    """

    def __init__(
        self,
        queue: deque[StepBatch],
        ends: Callable[[], Iterable[int] | None] = lambda: None,
        first: int = 0,
    ) -> None:
        self._queue = queue
        self._ends = ends
        self._first = first
        """Row that the first of those kept is."""
        self._kept: list[StepBatch] = []

    def steps(self, window: WindowNs) -> StepBatch:
        """Return those of a window, and forget those before."""
        while self._queue:
            self._kept.append(self._queue.popleft())
        while self._kept and self._kept[0].end_ns[-1] <= window.opened_ns:
            self._first += len(self._kept.pop(0).end_ns)
        if not self._kept:
            return StepBatch(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 0)), np.zeros(0))
        start_ns = np.concatenate([batch.start_ns for batch in self._kept])
        end_ns = np.concatenate([batch.end_ns for batch in self._kept])
        energy_j = np.concatenate([batch.energy_j for batch in self._kept], axis=1)
        rows = StepBatch(start_ns, end_ns, energy_j, np.concatenate([batch.backward_s for batch in self._kept]))
        ends = self._ends()
        steps = rows if ends is None else _grouped(rows, [end - self._first for end in ends])
        ended = (steps.end_ns > window.opened_ns) & (steps.end_ns <= window.closed_ns)
        inside = (steps.start_ns >= window.settled_ns) & ended
        return StepBatch(
            steps.start_ns[inside], steps.end_ns[inside], steps.energy_j[:, inside], steps.backward_s[inside]
        )


def _grouped(rows: StepBatch, ends: Iterable[int]) -> StepBatch:
    """Return optimizer steps: as long as their rows are together, without what lies between these."""
    bounds = np.array(sorted({end for end in ends if 0 <= end <= len(rows.end_ns)}), np.int64)
    if len(bounds) < 2:
        return StepBatch(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((len(rows.energy_j), 0)), np.zeros(0))
    until_ns = np.concatenate([np.zeros(1, np.int64), np.cumsum(rows.end_ns - rows.start_ns)])
    until_j = np.concatenate([np.zeros((len(rows.energy_j), 1)), np.cumsum(rows.energy_j, axis=1)], axis=1)
    end_ns = rows.end_ns[bounds[1:] - 1]
    backward_s = np.add.reduceat(rows.backward_s[: bounds[-1]], bounds[:-1])
    return StepBatch(end_ns - np.diff(until_ns[bounds]), end_ns, np.diff(until_j[:, bounds], axis=1), backward_s)


def _usual(seconds: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell which steps are neither recompilations nor waits for a disk: those are few, and far longer than the rest."""
    median = float(np.median(seconds))
    spread = _SCALE * float(np.median(np.abs(seconds - median)))
    usual = np.asarray(seconds <= median + max(_FAR * spread, _LONG * median), dtype=np.bool_)
    return usual if np.count_nonzero(~usual) <= _RARE * len(seconds) else np.ones(len(seconds), bool)


def _sem(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values)))
