"""Readings of one GPU's energy counter become dated anchors; what a counter may not do ends a count."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from energy_plugins.measure.counter import REFRESH_NS, Anchor, RefreshPhase
from energy_plugins.measure.silence import MOST_W

_PATIENCE_NS = 2_000_000_000
"""How long readings wait for the phase of the refresh to be found, before they are dated without it."""
_SLOW_NS = 1_000_000_000
"""A reading that took longer hung in the driver: nobody knows when in that time the counter stood there."""
_SLACK_NS = 200_000_000
"""By how much two readings may be further apart than they are dated, where the phase is not known."""

_Row = tuple[int, int, float, int]


class Anchors:
    """Dates the readings of one GPU's counter.

    ``faults`` counts what was wrong with them, by text.
    """

    def __init__(self, start_ns: int, faults: dict[str, int]) -> None:
        self.dated: list[Anchor] = []
        self._faults = faults
        self._phase = RefreshPhase()
        self._phase_lost = False
        self._unsure_ns = start_ns
        self._undated: list[_Row] = []
        self._count = 0

    def take(self, counter: NDArray[np.void]) -> None:
        """Take readings (the columns of ``_native.Sampler.counter``); they may stay undated for two seconds."""
        self._undated += counter.tolist()
        self._learn(self._undated)
        if self._undated and (self._phase.known or self._undated[-1][0] - self._unsure_ns > _PATIENCE_NS):
            self.date_all()

    def date_all(self) -> None:
        """Date what was taken, as well as can be."""
        rows, self._undated = self._undated, []
        for number, row in enumerate(rows):
            count = self._count
            self._date(*row)
            if self._count != count:
                self._learn(rows[number + 1 :])

    def wants_edge(self, now_ns: int) -> bool:
        """Return whether the refresh of the counter should be looked at again."""
        return self._phase.stale(now_ns) or (self._phase_lost and not self._phase.known)

    def unsure(self, t_ns: int) -> None:
        """Forget the phase of the refresh: the GPU may have been reset around ``t_ns``."""
        self._phase_lost |= self._phase.known
        self._phase, self._unsure_ns = RefreshPhase(), t_ns

    def interrupt(self, since_ns: int) -> None:
        """End the count: what the counter counted since ``since_ns`` was not all drawn in the run's own time."""
        self._count += 1
        self._undated = []
        self.dated = [anchor for anchor in self.dated if anchor.t_ns <= since_ns]
        self.unsure(since_ns)

    def forget(self, before_ns: int) -> None:
        """Drop what no block from ``before_ns`` on needs."""
        while len(self.dated) > 2 and self.dated[1].t_ns < before_ns:
            del self.dated[0]

    def _learn(self, rows: Sequence[_Row]) -> None:
        for before_ns, after_ns, _, edge in rows:
            if edge:
                self._phase.edge(before_ns, after_ns)

    def _date(self, before_ns: int, after_ns: int, energy_j: float, edge: int) -> None:
        when = self._when(before_ns, after_ns, edge)
        if when is None:
            return
        last = self.dated[-1] if self.dated else None
        if last is not None and energy_j < last.energy_j:
            self._break("the energy counter went backwards; its sum of that stretch is not used")
            self.unsure(before_ns)
            when = self._when(before_ns, after_ns, edge) or when
        t_ns, error_ns = when
        if last is not None:
            if energy_j - last.energy_j > MOST_W * (t_ns - last.t_ns + _SLACK_NS) * 1e-9:
                self._break("the energy counter leapt ahead; its sum of that stretch is not used")
            if t_ns <= last.t_ns + REFRESH_NS // 2:
                return
        self.dated.append(Anchor(t_ns, energy_j, error_ns, self._count))

    def _when(self, before_ns: int, after_ns: int, edge: int) -> tuple[int, float] | None:
        if after_ns - before_ns > _SLOW_NS:
            return None
        return self._phase.seen(before_ns, after_ns) if edge else self._phase.reading(before_ns, after_ns)

    def _break(self, text: str) -> None:
        self._count += 1
        self._faults[text] = self._faults.get(text, 0) + 1
