"""Numbers of bytes that grow with the micro-batch: lines, and the highest of many lines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Growth:
    """A number of bytes that grows with the micro-batch."""

    fixed_bytes: float
    bytes_per_sample: float

    @staticmethod
    def through(one: tuple[int, float], other: tuple[int, float]) -> Growth:
        """Return the line through what was seen at two sizes, each a pair of size and bytes."""
        slope = (other[1] - one[1]) / (other[0] - one[0])
        return Growth(one[1] - slope * one[0], slope)

    def at(self, size: int) -> int:
        """Return how many bytes that are for a micro-batch of ``size`` samples."""
        return round(self.fixed_bytes + self.bytes_per_sample * size)

    def above(self, size_bytes: float) -> Growth:
        """Return the same, ``size_bytes`` higher at every size."""
        return Growth(self.fixed_bytes + size_bytes, self.bytes_per_sample)

    def largest_within(self, size_bytes: float) -> int | None:
        """Return the largest micro-batch of no more than so many bytes; 0 if none, None if they all are."""
        room = size_bytes - self.fixed_bytes
        if room < 0:
            return 0
        return None if self.bytes_per_sample <= 0 else int(room / self.bytes_per_sample)


def highest(growths: Iterable[Growth]) -> tuple[Growth, ...]:
    """Return those that are the highest at some size from 1 up, in the order in which they are."""
    hull: list[Growth] = []
    begins: list[float] = []  # the size from which on each is the highest
    for one in sorted(growths, key=lambda growth: (growth.bytes_per_sample, growth.fixed_bytes)):
        begin = 1.0
        while hull:
            steeper = one.bytes_per_sample - hull[-1].bytes_per_sample
            higher = hull[-1].fixed_bytes - one.fixed_bytes
            begin = max(higher / steeper, 1.0) if steeper > 0 else 1.0
            if begin > begins[-1]:
                break
            hull.pop()
            begins.pop()
            begin = 1.0
        hull.append(one)
        begins.append(begin)
    return tuple(hull)
