"""Long columns as few points: the lowest, the mean and the highest value of equal stretches, so no peak is lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from energy_plugins.measure.columns import Columns

Array: TypeAlias = NDArray[np.float64]

MOST_POINTS: Final = 2000
"""Points of a line that stand for several rows each: about as many as a wide screen has pixels."""
MOST_ROWS: Final = 2 * MOST_POINTS
"""Rows of which each is drawn as it is: beyond it a point stands for two and more."""
ROWS_A_TIME: Final = 1 << 18
"""Rows in memory at once, so that it stays flat however long the run was."""
MOST: Final = 1e30
"""What a file gives as more joules, watts or seconds than this is no measurement, and would overflow sums."""


def known(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which values can be drawn."""
    return np.asarray(np.abs(values) < MOST)


@dataclass(frozen=True, eq=False)
class Trace:
    """A line of at most `MOST_ROWS` points; where a point stands for several rows it has their extremes, too.

    A stretch without any value is NaN, so that a line has a gap there.
    """

    at: Array
    """Where the points are: seconds, or numbers of steps."""
    mean: Array
    low: Array | None = None
    """The lowest value of the rows of each point; None where each point is one row."""
    high: Array | None = None

    @property
    def lowest(self) -> Array:
        """The lowest values, of single rows the rows themselves."""
        return self.mean if self.low is None else self.low

    @property
    def highest(self) -> Array:
        """The highest values, likewise."""
        return self.mean if self.high is None else self.high


class Stretches:
    """Sums up values in ``count`` equal stretches of an axis from 0 to ``end``; what lies outside is left out."""

    def __init__(self, end: float, count: int) -> None:
        self.end, self.count = end, count
        self._sum = np.zeros(count)
        self._rows = np.zeros(count, np.int64)
        self._low = np.full(count, np.inf)
        self._high = np.full(count, -np.inf)

    def add(self, at: NDArray[Any], values: NDArray[Any]) -> None:
        """Add values, each at its place; what cannot be drawn is left out."""
        there = known(values) & (at >= 0) & (at <= self.end)
        if not there.any():
            return
        row = np.minimum(at[there] / self.end * self.count, self.count - 1).astype(np.int64)
        value = values[there].astype(np.float64)
        if np.any(np.diff(row) < 0):
            order = np.argsort(row, kind="stable")
            row, value = row[order], value[order]
        first = np.flatnonzero(np.diff(row, prepend=-1))
        place = row[first]
        self._sum[place] += np.add.reduceat(value, first)
        self._rows[place] += np.diff(first, append=len(row))
        self._low[place] = np.minimum(self._low[place], np.minimum.reduceat(value, first))
        self._high[place] = np.maximum(self._high[place], np.maximum.reduceat(value, first))

    @property
    def mean(self) -> Array:
        """The mean of each stretch, NaN where there was no value."""
        return np.asarray(np.divide(self._sum, self._rows, out=np.full(self.count, np.nan), where=self._rows > 0))

    def trace(self) -> Trace:
        """Return the line, each point in the middle of its stretch."""
        at: Array = (np.arange(self.count, dtype=np.float64) + 0.5) * (self.end / self.count)
        empty = self._rows == 0
        low: Array = np.where(empty, np.nan, self._low)
        high: Array = np.where(empty, np.nan, self._high)
        return Trace(at, self.mean, low, high)


def trace_of(columns: Columns, at: str, value: str, end: float) -> Trace:
    """Return the line that column ``value`` makes over column ``at``, from 0 to ``end``.

    Raises:
        ColumnError: the columns may not be read.
    """
    if not 0 < end < MOST:
        return Trace(np.empty(0), np.empty(0))
    if columns.rows <= MOST_ROWS:
        place: Array = np.array(columns[at], np.float64)
        values: Array = np.array(columns[value], np.float64)
        inside = (place >= 0) & (place <= end)
        order = np.argsort(place[inside], kind="stable")
        values[~known(values)] = np.nan
        return Trace(place[inside][order], values[inside][order])
    stretches = Stretches(end, MOST_POINTS)
    for part in columns.windows(ROWS_A_TIME, (at, value)):
        stretches.add(part[at], part[value])
    return stretches.trace()
