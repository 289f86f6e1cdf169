"""What steps took and drew in a window of time, from the late figures of each: robust, and pure but for one queue."""

from __future__ import annotations

import math
from collections import deque
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
    """The steps of a run that are not judged yet."""

    def __init__(self, queue: deque[StepBatch]) -> None:
        self._queue = queue
        self._kept: list[StepBatch] = []

    def steps(self, window: WindowNs) -> StepBatch:
        """Return those of a window, and forget those before."""
        while self._queue:
            self._kept.append(self._queue.popleft())
        self._kept = [batch for batch in self._kept if batch.end_ns[-1] > window.opened_ns]
        if not self._kept:
            return StepBatch(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 0)), np.zeros(0))
        start_ns = np.concatenate([batch.start_ns for batch in self._kept])
        end_ns = np.concatenate([batch.end_ns for batch in self._kept])
        energy_j = np.concatenate([batch.energy_j for batch in self._kept], axis=1)
        backward_s = np.concatenate([batch.backward_s for batch in self._kept])
        inside = (start_ns >= window.settled_ns) & (end_ns > window.opened_ns) & (end_ns <= window.closed_ns)
        return StepBatch(start_ns[inside], end_ns[inside], energy_j[:, inside], backward_s[inside])


def _usual(seconds: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell which steps are neither recompilations nor waits for a disk: those are few, and far longer than the rest."""
    median = float(np.median(seconds))
    spread = _SCALE * float(np.median(np.abs(seconds - median)))
    usual = np.asarray(seconds <= median + max(_FAR * spread, _LONG * median), dtype=np.bool_)
    return usual if np.count_nonzero(~usual) <= _RARE * len(seconds) else np.ones(len(seconds), bool)


def _sem(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values)))
