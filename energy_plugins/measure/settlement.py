"""Spans and segments become joules once every GPU's curve has settled past them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from energy_plugins.measure.attribution import Points, SpanEnergy, attribute
from energy_plugins.measure.silence import with_recovered
from energy_plugins.measure.track import GpuTrack

Interval = tuple[int, int]
_Rows = NDArray[np.int64] | slice


class Settlement:
    """Evaluates intervals on the curves of all GPUs together.

    Curves are forgotten as they settle; the points that open spans will need later are remembered.
    """

    def __init__(self, tracks: Sequence[GpuTrack], start_ns: int) -> None:
        self.start_ns = start_ns
        self.settled_ns = start_ns
        self.tracks = tracks
        self._stash: dict[int, tuple[list[Points], int]] = {}
        """Time -> points of all GPUs, at times that were asked for together, and which of these it is."""

    def energy(self, intervals: Sequence[Interval]) -> SpanEnergy:
        """Return joules, bound and coverage of each interval (ns), summed over the GPUs.

        NaN where no GPU was measured.
        """
        none = np.full(len(intervals), np.nan)
        if not self.tracks or not intervals:
            return SpanEnergy(none, none.copy(), np.zeros(len(intervals)), np.zeros(len(intervals)))
        bounds = np.asarray(intervals, np.int64)
        times, back = np.unique(bounds.ravel(), return_inverse=True)
        start, end = back.reshape(bounds.shape).T
        return _together(self._between(times, start, end))

    def window(self, end_ns: int) -> list[SpanEnergy]:
        """Return, for each GPU, the energy of the run from its start to ``end_ns``, one row each."""
        nothing = SpanEnergy(np.full(1, np.nan), np.full(1, np.nan), np.zeros(1), np.zeros(1))
        if not all(track.curve.started for track in self.tracks):
            return [nothing] * len(self.tracks)
        times = np.array([self.start_ns, end_ns])
        return self._between(times, slice(0, 1), slice(1, 2))

    def advance(self, settled_ns: int, needed_ns: Iterable[int]) -> None:
        """Forget curves before ``settled_ns``, but for the points at ``needed_ns``."""
        needed = {t_ns for t_ns in needed_ns if t_ns <= settled_ns}
        fresh = np.array(sorted(needed - self._stash.keys()), np.int64)
        if len(fresh) and self.tracks:
            columns = self._points(fresh)
            for row, t_ns in enumerate(fresh.tolist()):
                self._stash[t_ns] = columns, row
        for t_ns in self._stash.keys() - needed:
            del self._stash[t_ns]
        for track in self.tracks:
            track.forget(settled_ns)
        self.settled_ns = settled_ns

    def points(self, row: int, times: NDArray[np.int64]) -> Points:
        """Return points of the curve of GPU ``row``: settled ones, not forgotten or still needed."""
        stashed = np.array([t_ns in self._stash for t_ns in times.tolist()], bool)
        order = np.argsort(np.concatenate([np.flatnonzero(stashed), np.flatnonzero(~stashed)]), kind="stable")
        kept = [self._stash[t_ns] for t_ns in times[stashed].tolist()]
        parts = [
            together[0][0][row].take(np.array([place for _, place in together]))
            for together in (list(group) for _, group in groupby(kept, key=lambda entry: id(entry[0])))
        ]
        if not stashed.all():
            parts.append(self.tracks[row].at(times[~stashed]))
        return Points.join(parts).take(order)

    def _between(self, times: NDArray[np.int64], start: _Rows, end: _Rows) -> list[SpanEnergy]:
        parts = []
        for track, points in zip(self.tracks, self._points(times), strict=True):
            first, last = points.take(start), points.take(end)
            parts.append(with_recovered(attribute(first, last), first, last, track.ledger.recovered))
        return parts

    def _points(self, times: NDArray[np.int64]) -> list[Points]:
        return [self.points(row, times) for row in range(len(self.tracks))]


def _together(parts: Sequence[SpanEnergy]) -> SpanEnergy:
    joules = np.array([part.joules for part in parts])
    bound = np.array([part.error_bound_j for part in parts])
    lost = np.isnan(joules).all(axis=0)
    return SpanEnergy(
        joules=np.where(lost, np.nan, np.nansum(joules, axis=0)),
        error_bound_j=np.where(lost, np.nan, np.sqrt(np.nansum(bound**2, axis=0))),
        coverage=np.mean([part.coverage for part in parts], axis=0),
        shift_j=np.sum([part.shift_j for part in parts], axis=0),
    )
