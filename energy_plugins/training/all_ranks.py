"""What all ranks of a training know of each other, after the same step, by nothing but a sum over ranks."""

from __future__ import annotations

from collections.abc import Sequence

from energy_plugins.measure.rank_part import Rank
from energy_plugins.training.watch import SumOverRanks


class AllRanks:
    """Hands what each rank says to all of them. Every rank has one, and they ask together.

    Args:
        who: which rank this is.
        sum_over_ranks: collective where there are several.
    """

    def __init__(self, who: Rank, sum_over_ranks: SumOverRanks) -> None:
        self.who = who
        self._sum = sum_over_ranks

    def hear(self, own: Sequence[float]) -> list[tuple[float, ...]]:
        """Return what each rank said, as many numbers of each, the same on all ranks to the last bit. Collective."""
        each, before = len(own), self.who.rank * len(own)
        after = (self.who.world_size - self.who.rank - 1) * each
        # Each has a place of its own in the sum, where all others add 0.
        summed = self._sum((*[0.0] * before, *own, *[0.0] * after))
        return [tuple(summed[start : start + each]) for start in range(0, len(summed), each)]
