"""What a power sample responds to, and the level of each kind of work read back out of blurred samples.

A driver's power sample is not the power at its stamp: it follows the power after a dead time, through a first-order lag
or as the mean over a window. Work that alternates faster than that is blurred. The blur is linear and known, so the
level of each kind of work is found by least squares from the samples and the share of each sample's response that each
kind occupied.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.int64]
Values = NDArray[np.float64]

_REACH = 6.0
"""Time constants after which a first-order response is forgotten (e^-6 = 0.25 %)."""


@dataclass(frozen=True)
class Response:
    """How a power sensor responds.

    ``dead_time_s`` of nothing; then the mean over ``window_s``, or where that is 0 an exponential of time constant
    ``lag_s``.
    """

    dead_time_s: float = 0.0
    lag_s: float = 0.0
    window_s: float = 0.0

    @property
    def delay_ns(self) -> int:
        """Mean age (ns) of the power that a sample shows."""
        return round((self.dead_time_s + self.lag_s + self.window_s / 2) * 1e9)

    @property
    def reach_ns(self) -> int:
        """Age (ns) of the oldest power that a sample shows anything of."""
        return round((self.dead_time_s + max(_REACH * self.lag_s, self.window_s)) * 1e9)

    @property
    def blur_s(self) -> float:
        """Length (s) over which the power is smeared."""
        return max(self.lag_s, self.window_s)

    def share_before(self, age_ns: Values) -> Values:
        """Return the share of the response to what is older than ``age_ns`` (negative: 1), counted from the dead time.

        For ages up to the reach.
        """
        if self.window_s > 0:
            return np.clip(1.0 - age_ns / (self.window_s * 1e9), 0.0, 1.0)
        return np.exp(-np.maximum(age_ns, 0.0) / (self.lag_s * 1e9))


@dataclass(frozen=True)
class Segments:
    """Consecutive stretches of work.

    Segment ``j`` runs from ``edges_ns[j]`` to ``edges_ns[j + 1]`` and is of kind ``kinds[j]``.
    """

    edges_ns: Times
    kinds: NDArray[np.int64]

    def at(self, t_ns: Times) -> NDArray[np.int64]:
        """Return the number of the segment at each time; before the first edge the first, after the last the last."""
        number = np.searchsorted(self.edges_ns, t_ns, side="right") - 1
        return np.clip(number, 0, len(self.kinds) - 1)

    def edges_between(self, start_ns: int, end_ns: int) -> Times:
        """Return the edges that lie inside of a stretch of time."""
        return self.edges_ns[(self.edges_ns > start_ns) & (self.edges_ns < end_ns)]


@dataclass(frozen=True)
class Levels:
    """Power level (W) of each kind of work, and its standard error (W); rows follow ``kinds``."""

    kinds: NDArray[np.int64]
    power_w: Values
    error_w: Values


def occupancy(response: Response, t_ns: Times, segments: Segments, columns: int) -> Values:
    """Return the share of each sample's response that each kind occupied, shape ``(len(t_ns), columns)``.

    ``segments.kinds`` are column numbers. Rows sum to one where the segments cover the sample's response; a sample
    that reaches back before the first edge sees the first segment extended.
    """
    seen_ns = t_ns - round(response.dead_time_s * 1e9)
    oldest_ns = t_ns - response.reach_ns
    first = segments.at(oldest_ns)
    last = np.clip(np.searchsorted(segments.edges_ns, seen_ns, side="left"), first + 1, len(segments.kinds))
    count = last - first
    sample = np.repeat(np.arange(len(t_ns)), count)
    segment = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
    since_open = response.share_before((seen_ns[sample] - segments.edges_ns[segment]).astype(np.float64))
    until_close = response.share_before((seen_ns[sample] - segments.edges_ns[segment + 1]).astype(np.float64))
    opened = np.where(segment == first[sample], 0.0, since_open)
    closed = np.where(segment + 1 == last[sample], 1.0, until_close)
    weight = closed - opened
    filled = np.bincount(sample * columns + segments.kinds[segment], weight, len(t_ns) * columns).astype(np.float64)
    return filled.reshape(len(t_ns), columns)


class LevelFit:
    """Running least squares of the level of each kind.

    Older blocks count less, so that levels follow a change of workload.

    The prior that keeps the fit solvable is that a kind draws the mean power: kinds that the samples cannot tell apart
    stay equal, which is plain apportioning by time.
    """

    _MEMORY = 0.5
    """Weight of everything before a block, against the block."""
    _FORGOTTEN = 0.02
    """Samples' worth of weight below which a kind is dropped."""

    def __init__(self, doubt: float = 2e-5) -> None:
        """Make a fit that has seen nothing.

        ``doubt`` is the belief that a kind draws the mean power, as a share of the samples seen. It grows with them
        because what it stands against, a response known to a millisecond and marks of a microsecond, does not average
        out; it matters only to kinds seen in slivers.
        """
        self._doubt = doubt
        self._kinds = np.empty(0, np.int64)
        self._gram = np.empty((0, 0))
        self._moment = np.empty(0)
        self._seen = 0.0
        self._sum_w = 0.0

    def update(self, shares: Values, kinds: NDArray[np.int64], power_w: Values) -> Levels:
        """Take a block's samples and return the levels of ``kinds``.

        ``shares`` has a row for each sample and a column for each kind; ``power_w`` is what was measured.
        """
        self._admit(kinds)
        rows = np.searchsorted(self._kinds, kinds)
        self._gram *= self._MEMORY
        self._moment *= self._MEMORY
        self._gram[np.ix_(rows, rows)] += shares.T @ shares
        self._moment[rows] += shares.T @ power_w
        self._seen = self._seen * self._MEMORY + len(power_w)
        self._sum_w = self._sum_w * self._MEMORY + float(power_w.sum())
        mean_w = self._sum_w / self._seen
        prior = self._doubt * self._seen
        inverse = np.linalg.inv(self._gram + prior * np.eye(len(self._kinds)))
        level = np.clip((inverse @ (self._moment + prior * mean_w))[rows], 0.5 * power_w.min(), 1.5 * power_w.max())
        noise_w2 = float(np.mean((power_w - shares @ level) ** 2)) + 1.0
        spread_w2 = (float(np.ptp(power_w)) / 4 + 1.0) ** 2
        error = np.sqrt((noise_w2 + prior * spread_w2) * np.diag(inverse)[rows])
        return Levels(kinds, level, np.minimum(error, np.ptp(power_w) + 1.0))

    def _admit(self, kinds: NDArray[np.int64]) -> None:
        kept = np.flatnonzero((np.diag(self._gram) > self._FORGOTTEN) | np.isin(self._kinds, kinds))
        merged = np.unique(np.concatenate([self._kinds[kept], kinds]))
        old = np.searchsorted(merged, self._kinds[kept])
        gram, moment = np.zeros((len(merged), len(merged))), np.zeros(len(merged))
        gram[np.ix_(old, old)], moment[old] = self._gram[np.ix_(kept, kept)], self._moment[kept]
        self._kinds, self._gram, self._moment = merged, gram, moment
