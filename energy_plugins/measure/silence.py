"""Stretches without samples whose joules the energy counter knows all the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from energy_plugins.measure.attribution import Z95, EnergyCurve, Points, SpanEnergy
from energy_plugins.measure.counter import Anchor

Silence = tuple[int, int]
"""From the last sample before to the first one after (ns)."""

LONG_NS = 1_000_000_000
"""Time without a sample from which on its neighbours say nothing about it any more."""
MOST_W = 3000.0
"""More than any GPU draws: the largest boards of 2025 are rated 1.4 kW. A counter that says more is wrong."""


@dataclass(frozen=True)
class Recovered:
    """Joules of a silence that the counter told only after its stretch of the curve was settled without them.

    Nobody knows when in the silence they were drawn, so they belong to spans that contain all of it.
    """

    from_ns: int
    until_ns: int
    energy_j: float
    error_j: float
    """Standard error."""


class Ledger:
    """What the counter counted since a reading, less what the curve holds: the joules of silences."""

    def __init__(self) -> None:
        self.recovered: list[Recovered] = []
        self.given: list[Silence] = []
        """Settled without joules; the next reading may still tell them."""
        self.lost: list[Silence] = []
        """Whose joules no reading will ever tell."""
        self._known: Anchor | None = None
        self._held_j = 0.0
        self._held_j2 = 0.0
        self._held_bias_j = 0.0

    def add(self, block: EnergyCurve) -> None:
        """Take note of a settled block of samples."""
        energy_j = float(block.energy_j[-1])
        self._held_j += energy_j
        self._held_j2 += (1.0 - block.trust) * float(block.variance_j2[-1])
        self._held_bias_j += (1.0 - block.trust) * block.bias * energy_j

    def owed(self, anchor: Anchor) -> tuple[float, float] | None:
        """Return the joules up to ``anchor`` that no block holds, and their standard error; None: nobody can know."""
        known = self._known
        if known is None or known.count != anchor.count or known.t_ns >= anchor.t_ns:
            return None
        counted_j = anchor.energy_j - known.energy_j
        aged_s = np.hypot(known.error_ns, anchor.error_ns) * 1e-9
        aged_j = counted_j / ((anchor.t_ns - known.t_ns) * 1e-9) * aged_s
        return counted_j - self._held_j, float(np.sqrt(self._held_j2 + self._held_bias_j**2 + aged_j**2))

    def tell(self, silences: Sequence[Silence], anchor: Anchor | None) -> list[EnergyCurve]:
        """Return the blocks of ``silences``, with their joules if ``anchor`` tells them.

        Where some of what it tells lies in silences that were settled before, the joules are `recovered` instead.

        Raises:
            ValueError: the counter tells more than any GPU draws, or less than nothing.
        """
        owed = self.owed(anchor) if anchor is not None else None
        quiet = [*self.given, *silences]
        self.given = quiet
        if owed is None or not quiet:
            return [unknown(silence) for silence in silences]
        energy_j, error_j = owed
        if not -3 * error_j <= energy_j <= MOST_W * _length_s(quiet) + 3 * error_j:
            raise ValueError("the energy counter leapt while the GPU gave no power samples; its joules are not known")
        energy_j = max(energy_j, 0.0)
        self.given = []
        if len(quiet) > len(silences):
            self.recovered.append(Recovered(quiet[0][0], quiet[-1][1], energy_j, error_j))
            return [unknown(silence) for silence in silences]
        shares = [_length_s([silence]) / _length_s(silences) for silence in silences]
        return [
            bridged(silence, energy_j * share, error_j * share) for silence, share in zip(silences, shares, strict=True)
        ]

    def close(self, anchor: Anchor) -> None:
        """Begin anew at ``anchor``."""
        self._known, self._held_j, self._held_j2, self._held_bias_j = anchor, 0.0, 0.0, 0.0
        self.lost += self.given
        self.given = []

    def clip(self, end_ns: int) -> None:
        """Leave out what was recovered from after ``end_ns``, the end of the window."""
        if self.recovered and self.recovered[-1].until_ns > end_ns:
            last = self.recovered.pop()
            share = (end_ns - last.from_ns) / (last.until_ns - last.from_ns)
            if share > 0:
                self.recovered.append(Recovered(last.from_ns, end_ns, last.energy_j * share, last.error_j))

    def lost_s(self) -> float:
        """Return for how long the joules are not known, so far (s)."""
        return _length_s(self.lost) + _length_s(self.given)


def with_recovered(energy: SpanEnergy, start: Points, end: Points, recovered: Sequence[Recovered]) -> SpanEnergy:
    """Return the energy of spans from ``start`` to ``end`` with what was recovered inside each."""
    for one in recovered:
        whole = (start.t_ns <= one.from_ns) & (one.until_ns <= end.t_ns)
        energy = replace(
            energy,
            joules=energy.joules + np.where(whole, one.energy_j, 0.0),
            error_bound_j=np.hypot(energy.error_bound_j, np.where(whole, Z95 * one.error_j, 0.0)),
        )
    return energy


def bridged(silence: Silence, energy_j: float, error_j: float) -> EnergyCurve:
    """Return the curve of a silence with a known sum: nothing is covered, and a cut through it is worth little.

    The sum is trusted (its standard error is ``error_j``), its course is not: half way, anything between nothing and
    all of it may have been drawn.
    """
    end_error_j = error_j / float(np.sqrt(2.0))
    return EnergyCurve(
        t_ns=np.array(silence, np.int64),
        energy_j=np.array([0.0, energy_j]),
        variance_j2=np.array([0.0, energy_j**2]),
        covered_ns=np.zeros(2),
        cut_j2=np.zeros(1),
        shift_j=np.zeros(1),
        trust=1.0,
        bias=0.0,
        start_error_j=end_error_j,
        end_error_j=end_error_j,
    )


def unknown(silence: Silence) -> EnergyCurve:
    """Return the curve of a silence of which nothing is known: no joules, and nothing is covered."""
    return replace(bridged(silence, 0.0, 0.0), trust=0.0)


def _length_s(silences: Sequence[Silence]) -> float:
    return sum(until_ns - since_ns for since_ns, until_ns in silences) * 1e-9
