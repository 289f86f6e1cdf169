"""Steps of one training with one micro-batch after the other, in rounds, and what they drew; whatever the framework."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _common import Table, say

from energy_plugins import Report
from energy_plugins.errors import EnergyError
from energy_plugins.measure.drivers import current_drivers
from energy_plugins.training.micro_batch.batcher import MicroBatcher

ROUNDS = 3
_LEFT_OUT_S = 1.0
"""After a change: the caching allocator and cuDNN look for what suits them, and the power settles."""
_LEFT_OUT_STEPS = 2
_LEAST_STEPS = 2
_HOPELESS = 1.06
"""Times the joules of the best size in the first round: the others have no more turns, but for the user's and ours."""
_FLAT = 0.02
"""Sizes that cost at most so much more than the best lie before the knee."""


@dataclass(frozen=True)
class Window:
    """Rows of a report that ran with one micro-batch."""

    size: int
    round: int
    first: int
    end: int


@dataclass(frozen=True)
class Drawn:
    """What the steps of a window drew."""

    size: int
    round: int
    seconds: float
    samples: int
    energy_j: float
    coverage: float

    @property
    def sample_j(self) -> float:
        """Joules of one sample."""
        return self.energy_j / self.samples


class Turns:
    """Goes through sizes in rounds, in random order, once a search is over; its owner says when a step has ended.

    Args:
        sizes: to measure; the user's own is the ``start``.
        start: what the loader yields.
        seconds: how long a window lasts, at least.
        deadline_s: when to end it all, by the clock of the drivers.
        write: told after each round what has been measured so far.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        start: int,
        seconds: float,
        deadline_s: float,
        write: Callable[[Sequence[Window]], Sequence[Drawn]],
    ) -> None:
        self.windows: list[Window] = []
        self.is_over = False
        self.stopped = ""
        """Why it ended early."""
        self.check_s = 0.0
        """How long gradients were compared until the search was over."""
        self._sizes = list(sizes)
        self._start = start
        self._seconds, self._deadline_s, self._write = seconds, deadline_s, write
        self._todo: list[int] = []
        self._round = 0
        self._size: int | None = None
        self._since_s = 0.0
        self._steps = 0
        self._first: int | None = None
        self._checks = 0
        """Of gradients, made before the window began."""

    def after_step(self, batcher: MicroBatcher, rows: int) -> None:
        """Do what is due after an optimizer step, which was the last of so many ``rows`` of the report."""
        now_s = current_drivers().clock.now_ns() * 1e-9
        self._steps += 1
        if self.is_over or not batcher.settled:
            return
        if self._size is None:
            self.check_s = batcher.part().check_s
            failed = [one.size for one in batcher.part().tried if one.why]
            self._sizes = [one for one in self._sizes if one < min(failed, default=math.inf)]
        elif batcher.size != self._size:  # it ran out of memory
            self._sizes = [one for one in self._sizes if one < self._size]
            self._todo = [one for one in self._todo if one < self._size]
        elif self._first is None:
            if now_s - self._since_s >= _LEFT_OUT_S and self._steps >= _LEFT_OUT_STEPS:
                self._first, self._since_s, self._steps = rows, now_s, 0
                self._checks = batcher.part().gradient_checks
            return
        elif batcher.part().gradient_checks != self._checks:  # what they draw is none of the size's: begin anew
            self._first, self._since_s, self._steps = None, now_s, 0
            return
        elif now_s - self._since_s < self._seconds or self._steps < _LEAST_STEPS:
            return
        else:
            self.windows.append(Window(self._size, self._round, self._first, rows))
        self._next(batcher, now_s)

    def _next(self, batcher: MicroBatcher, now_s: float) -> None:
        if now_s > self._deadline_s:
            self.stopped = f"the time was over in round {self._round}"
        if not self._todo and not self.stopped:
            self._round += 1
            if self._round > 1:
                self._leave_out_hopeless(self._write(self.windows), batcher.part().chosen)
            self._todo = random.Random(self._round).sample(self._sizes, len(self._sizes))
        if self.stopped or self._round > ROUNDS or not self._todo:
            self.is_over = True
            return
        self._size, self._first = self._todo.pop(), None
        self._since_s, self._steps = now_s, 0
        batcher._rank.turn(self._size)  # noqa: SLF001 - what a search does between its windows

    def _leave_out_hopeless(self, drawn: Sequence[Drawn], chosen: int | None) -> None:
        joules = sample_joules(drawn)
        most_j = _HOPELESS * min(joules.values(), default=math.inf)
        self._sizes = [one for one in self._sizes if one in {self._start, chosen} or joules.get(one, 0.0) <= most_j]


def drawn_in(folder: Path, windows: Sequence[Window]) -> list[Drawn]:
    """Return what is known of windows in a report, which may still be being written."""
    try:
        steps = Report.load(folder).steps
    except EnergyError as error:
        say(f"  not read yet: {error}")
        return []
    found = []
    for one in windows:
        rows = slice(one.first, one.end)
        energies = np.asarray(steps["energy_j"][rows])
        if one.end > steps.rows or not np.isfinite(energies).all():
            continue
        seconds = float(steps["end_s"][one.end - 1] - steps["start_s"][one.first])
        samples, coverage = int(steps["samples"][rows].sum()), float(np.mean(steps["coverage"][rows]))
        found.append(Drawn(one.size, one.round, seconds, samples, float(energies.sum()), coverage))
    return found


def sample_joules(drawn: Sequence[Drawn]) -> dict[int, float]:
    """Return the joules of a sample by size: the median of its windows."""
    return {
        size: statistics.median(one.sample_j for one in drawn if one.size == size)
        for size in sorted({one.size for one in drawn})
    }


def knee(joules: Mapping[int, float]) -> int | None:
    """Return the largest size before energy rises, None if it rises nowhere."""
    if not joules:
        return None
    flat = [size for size, one in joules.items() if one <= min(joules.values()) * (1 + _FLAT)]
    return None if max(flat) == max(joules) else max(flat)


def as_table(drawn: Sequence[Drawn]) -> Table:
    """Return windows as columns for a result."""
    rows: list[dict[str, Any]] = [{**asdict(one), "sample_j": one.sample_j} for one in drawn]
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
