"""From the readings of one energy counter of the CPU to its joules: exact, whatever the counter wraps.

All sums are whole numbers or fractions of counts, so joules of adjacent windows add up to the last digit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

_MOST_W = 1000
"""No package and no socket's memory draws more; the largest processors of 2025 are specified for 500 W."""
_REFRESH_NS = 100_000_000
"""RAPL counters move about every millisecond (Intel SDM vol. 3B, "RAPL Interfaces"), so that two readings in quick
succession may enclose the energy of a longer time. This is longer than any."""
_POWERS_NJ = tuple(Fraction(10**9, 2**k) for k in range(32))
"""Units that a processor may count in (MSR_RAPL_POWER_UNIT, Intel SDM vol. 3B)."""

WRAPPED = "its counter may have wrapped more than once between two readings; that time is not measured"
SET_BACK = "its counter jumped, as after a reset; that time is not measured"


@dataclass(frozen=True)
class Scale:
    """What a count is worth, and after how many counts the counter begins again; None if it never does."""

    joules_per_count: Fraction
    wraps_at: Fraction | None = None

    @classmethod
    def microjoules(cls, largest_uj: int | None) -> Scale:
        """Return the scale of a sysfs counter whose ``max_energy_range_uj`` is ``largest_uj``; None: not known.

        The kernel shows a 32-bit register of whole units as microjoules rounded down, so the counter begins again
        not at the largest value but one unit after it (rapl_unit_xlate in drivers/powercap/intel_rapl_common.c, where
        a unit is a whole number of nanojoules; in kernels of 2015 it was the processor's own, 2^-k J). A largest value
        of another form is taken to be followed by 0.
        """
        if not largest_uj:
            return cls(Fraction(1, 10**6))
        whole_nj = Fraction(-(-largest_uj * 1000 // (2**32 - 1)))
        units_nj = (unit for unit in (whole_nj, *_POWERS_NJ) if (2**32 - 1) * unit // 1000 == largest_uj)
        unit_nj = next(units_nj, None)
        return cls(Fraction(1, 10**6), Fraction(largest_uj + 1) if unit_nj is None else 2**32 * unit_nj / 1000)

    def gain(self, before: int, after: int, elapsed_ns: int) -> Fraction | str:
        """Return what was counted between two readings, or why that cannot be known."""
        most = Fraction(_MOST_W * (elapsed_ns + _REFRESH_NS), 10**9) / self.joules_per_count
        gain = Fraction(after - before)
        if gain < 0 and self.wraps_at is not None:
            gain += self.wraps_at
        if not 0 <= gain <= most:
            return SET_BACK
        return WRAPPED if self.wraps_at is not None and gain + self.wraps_at <= most else gain


@dataclass(frozen=True)
class Stretch:
    """The time between two readings, and what was counted in it; None if that is not known."""

    start_ns: int
    end_ns: int
    counts: Fraction | None


@dataclass(frozen=True)
class Counted:
    """Counts of a time, and for how much of it they are known."""

    counts: Fraction = Fraction(0)
    covered_ns: int = 0

    def __add__(self, other: Counted) -> Counted:
        return Counted(self.counts + other.counts, self.covered_ns + other.covered_ns)


def counted(stretches: Iterable[Stretch], start_ns: int, end_ns: int) -> Counted:
    """Return what was counted from ``start_ns`` to ``end_ns``, taking the power to be even inside a stretch."""
    total = Counted()
    for stretch in stretches:
        inside_ns = min(end_ns, stretch.end_ns) - max(start_ns, stretch.start_ns)
        if inside_ns > 0 and stretch.counts is not None:
            total += Counted(stretch.counts * Fraction(inside_ns, stretch.end_ns - stretch.start_ns), inside_ns)
    return total


class CounterTrack:
    """The readings of one counter from the start of a window on; keeps only those that may still be cut."""

    def __init__(self, scale: Scale, start_ns: int) -> None:
        self.faults: dict[str, None] = {}
        """What could not be measured, each once."""
        self._scale = scale
        self._start_ns = start_ns
        self._last: tuple[int, int] | None = None
        self._stretches: list[Stretch] = []
        self._settled = Counted()

    def take(self, readings: NDArray[np.void]) -> None:
        """Add readings as the sampler hands them out, oldest first; a counter is read in the middle of its bracket."""
        for before_ns, after_ns, count in readings.tolist():
            t_ns = (before_ns + after_ns) // 2
            if self._last is not None:
                last_ns, last_count = self._last
                if t_ns <= last_ns:
                    continue
                gain = self._scale.gain(last_count, count, t_ns - last_ns)
                if isinstance(gain, str):
                    self.faults[gain] = None
                self._stretches.append(Stretch(last_ns, t_ns, None if isinstance(gain, str) else gain))
            self._last = t_ns, count

    def forget(self, until_ns: int) -> None:
        """Keep but the sum of what ended before ``until_ns``: no window will end earlier."""
        past = [stretch for stretch in self._stretches if stretch.end_ns <= until_ns]
        self._stretches = self._stretches[len(past) :]
        self._settled += counted(past, self._start_ns, until_ns)

    def energy_j(self, end_ns: int) -> tuple[float | None, float]:
        """Return the joules from the start to ``end_ns``, None if nothing is known of them, and the covered share."""
        total = self._settled + counted(self._stretches, self._start_ns, end_ns)
        if not total.covered_ns:
            return None, 0.0
        return float(total.counts * self._scale.joules_per_count), total.covered_ns / (end_ns - self._start_ns)
