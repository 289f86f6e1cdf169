"""Sums of energy where there is no energy counter: means over one second, taken one second apart, leave nothing out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from energy_plugins.measure.attribution import Z95, RunCurve, attribute
from energy_plugins.measure.counter import Anchor

_SECOND_NS = 1_000_000_000
"""What the driver's average is the mean over (arXiv:2312.02741)."""
_APART_NS = 150_000_000
"""Refreshes of the average, every 100 ms, further apart than this lack one between them."""
_INSTANT_NS = 10e6
"""Standard error of an anchor's instant: 3 ms of the stamp, which polling knows no better, and what a step of the power
between two refreshes does to the interpolation: sqrt(1/90) of their distance, on average over where both lie."""
_RELATIVE = 0.01 / Z95
"""Relative standard error of all such sums alike: nobody promises that the average is a mean over exactly a second."""

_WHOLE = 0.99
"""Coverage from which on a shape is known."""


class MeanSums:
    """Turns samples of the mean power over a second into readings of a counter that does not exist.

    The first anchor is the window's start, and each second from there on another one. The mean at such an instant is
    interpolated between two refreshes. That is to interpolate the energy at both ends of its second, so from second to
    second these errors cancel: only those at the first and the last anchor are left, however the load alternates.

    An instant that falls between refreshes too far apart ends a count; the next refresh begins a new one.
    """

    def __init__(self, start_ns: int, dead_time_s: float = 0.0) -> None:
        self._dead_ns = round(dead_time_s * 1e9)
        self._t_ns = np.empty(0, np.int64)
        self._power_w = np.empty(0)
        self._origin_ns = start_ns
        self._last: Anchor | None = None

    def take(self, means: NDArray[np.void]) -> list[Anchor]:
        """Take newer samples (the columns of ``_native.Sampler.mean``) and return the anchors that they make."""
        self._t_ns = np.concatenate([self._t_ns, means["t_ns"] - self._dead_ns])
        self._power_w = np.concatenate([self._power_w, means["power_w"]])
        made: list[Anchor] = []
        while (anchor := self._next()) is not None:
            made.append(anchor)
            self._last = anchor
        if self._last is not None:
            needed = max(int(np.searchsorted(self._t_ns, self._last.t_ns)) - 1, 0)
            self._t_ns, self._power_w = self._t_ns[needed:], self._power_w[needed:]
        return made

    def close(self, end_ns: int, curve: RunCurve) -> Anchor | None:
        """Return an anchor at the window's end, less than a second after the last one, where ``curve`` ends.

        The mean over the last second tells it, and the shape how much of that second was before the last anchor. None
        where either is not known.
        """
        mean_w, ago_ns, last = self._mean_w(end_ns), end_ns - _SECOND_NS, self._last
        if mean_w is None or last is None or last.t_ns != curve.settled_ns or ago_ns < self._origin_ns:
            return None
        shared = attribute(curve.at(np.array([ago_ns])), curve.at(np.array([last.t_ns])))
        if shared.coverage[0] < _WHOLE:
            return None
        error_j = float(np.hypot(shared.error_bound_j[0] / Z95, mean_w * _INSTANT_NS * 1e-9))
        energy_j = last.energy_j + mean_w - float(shared.joules[0])
        return Anchor(end_ns, energy_j, error_j / max(mean_w, 1e-3) * 1e9, last.count, _RELATIVE)

    def _next(self) -> Anchor | None:
        last = self._last
        if not len(self._t_ns):
            return None
        if last is None:
            self._origin_ns = max(self._origin_ns, int(self._t_ns[0]))
            return Anchor(self._origin_ns, 0.0, _INSTANT_NS, relative_error=_RELATIVE)
        t_ns = last.t_ns + _SECOND_NS
        if self._t_ns[-1] < t_ns:
            return None
        mean_w = self._mean_w(t_ns)
        if mean_w is not None:
            return Anchor(t_ns, last.energy_j + mean_w, _INSTANT_NS, last.count, _RELATIVE)
        self._origin_ns = int(self._t_ns[np.searchsorted(self._t_ns, t_ns)])
        return Anchor(self._origin_ns, last.energy_j, _INSTANT_NS, last.count + 1, _RELATIVE)

    def _mean_w(self, t_ns: int) -> float | None:
        """Return the mean over the second before ``t_ns``, None if no two neighbouring refreshes are around it."""
        after = int(np.searchsorted(self._t_ns, t_ns))
        if not 0 < after < len(self._t_ns) or self._t_ns[after] - self._t_ns[after - 1] > _APART_NS:
            return None
        return float(np.interp(t_ns, self._t_ns, self._power_w))
