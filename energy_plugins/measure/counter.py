"""When the energy counter said what: readings of a counter that refreshes now and then, dated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

REFRESH_NS = 100_000_000
"""Refresh period of NVML's energy counter; 100.00 ms and stable in phase over minutes on an H200
(docs/measuring.md)."""


@dataclass(frozen=True)
class Anchor:
    """An instant at which the energy counter stood at ``energy_j``.

    ``error_ns`` is the standard error of the instant, ``relative_error`` that of what is counted. Only anchors of one
    ``count`` may be subtracted: between two counts the counter began anew, leapt, or went on while the machine slept.
    """

    t_ns: int
    energy_j: float
    error_ns: float
    count: int = 0
    relative_error: float = 0.0


_Refresh = tuple[int, float]
"""When the counter refreshed, and the standard error of that (ns)."""


class RefreshPhase:
    """Dates readings of a counter that refreshes every 100 ms, from the instants at which a change was seen.

    A reading tells the energy at the refresh before it. Where the phase of the refresh is known, and no refresh fell
    inside the call, that instant is known to about the error of the phase; otherwise only to one period. The refresh
    drifts slowly against the host's clock; each further change seen makes the drift better known.
    """

    _DRIFT = 2e-5
    """Assumed drift of the refresh against the host's clock until it is measured; 7e-6 was the most seen in 138 s on
    an H200."""
    _STALE_NS = 6e6
    """Uncertainty at which another look at the refresh is worth its cost."""

    def __init__(self) -> None:
        self._first: _Refresh | None = None
        self._edge: _Refresh | None = None
        self._rate = 0.0
        self._rate_error = self._DRIFT
        self._steady = True

    @property
    def known(self) -> bool:
        """Whether a change was ever seen."""
        return self._edge is not None

    @staticmethod
    def seen(before_ns: int, after_ns: int) -> tuple[int, float]:
        """Return the time and standard error (ns) of a refresh seen between two instants."""
        return (before_ns + after_ns) // 2, (after_ns - before_ns) / float(np.sqrt(12.0))

    def edge(self, before_ns: int, after_ns: int) -> None:
        """Learn from a refresh seen between two instants."""
        edge_ns, error_ns = self.seen(before_ns, after_ns)
        last = self._edge
        if self._first is None or last is None:
            self._first = self._edge = (edge_ns, error_ns)
            return
        late_ns = self._late(edge_ns, last)
        if abs(late_ns) > 3 * (self._uncertainty(edge_ns, last) + error_ns):
            self._steady = False
        elif edge_ns - self._first[0] > 20 * REFRESH_NS:
            span_ns = edge_ns - self._first[0]
            self._rate += late_ns / span_ns
            self._rate_error = min(self._rate_error, (error_ns + self._first[1]) / span_ns)
        self._edge = (edge_ns, error_ns)

    def reading(self, before_ns: int, after_ns: int) -> tuple[int, float] | None:
        """Date a single reading; return the refresh it shows and its standard error (ns).

        None if a refresh fell into the call.
        """
        last = self._edge
        if last is None or not self._steady:
            middle = (before_ns + after_ns) // 2
            return middle - REFRESH_NS // 2, (REFRESH_NS + after_ns - before_ns) / float(np.sqrt(12.0))
        error_ns = self._uncertainty(before_ns, last)
        age_ns = self._late(before_ns, last) % REFRESH_NS
        margin_ns = 2 * error_ns + 1e6
        if age_ns < margin_ns or age_ns + (after_ns - before_ns) > REFRESH_NS - margin_ns:
            return None
        return before_ns - age_ns, error_ns

    def stale(self, now_ns: int) -> bool:
        """Return whether another look at the refresh (`_native.Sampler.find_edge`) is due."""
        last = self._edge
        return self._steady and last is not None and self._uncertainty(now_ns, last) > self._STALE_NS

    def _late(self, t_ns: int, last: _Refresh) -> int:
        """Return how long after the refresh predicted nearest to it ``t_ns`` lies (ns, negative before it)."""
        passed = t_ns - last[0]
        passed -= round(passed * self._rate)
        return (passed + REFRESH_NS // 2) % REFRESH_NS - REFRESH_NS // 2

    def _uncertainty(self, t_ns: int, last: _Refresh) -> float:
        return last[1] + self._rate_error * abs(t_ns - last[0])
