"""The limits of all ranks at one time: one for all, or another for some of them. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RankLimits:
    """A limit and whom it is for, in the unit of what is turned."""

    limit: float
    ranks: tuple[int, ...] = ()
    """Those that it is for; empty for all."""
    others: float | None = None
    """The limit of all others, None if there are none."""

    def of(self, rank: int) -> float:
        """Return the limit of a rank."""
        return self.limit if self.others is None or rank in self.ranks else self.others

    def each(self, ranks: int) -> tuple[float, ...]:
        """Return the limits of so many ranks, in their order."""
        return tuple(map(self.of, range(ranks)))
