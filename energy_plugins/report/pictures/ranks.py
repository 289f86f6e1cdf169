"""All ranks of a training side by side, with those that the others waited for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from energy_plugins.measure.quantity import percent, quantity
from energy_plugins.measure.ranks import RankRow, Ranks
from energy_plugins.measure.report import Report
from energy_plugins.report.pictures.picture import Missing, Picture, listed

NAME: Final = "ranks"
TITLE: Final = "Ranks side by side"
MOST_RANKS: Final = 256


@dataclass(frozen=True)
class RankBar:
    """One rank; None where it did not tell."""

    rank: int
    node: str
    energy_j: float | None
    data_wait_j: float | None
    stall_j: float | None
    """Without the wait for data."""
    peer_wait_j: float | None
    backward_s: float | None
    backward_spread_s: float
    straggles: bool
    counted: bool
    """Whether its GPUs are in the sums."""
    complete: bool


@dataclass(frozen=True, eq=False, kw_only=True)
class RankPicture(Picture):
    """The ranks that are there, the stragglers among them."""

    bars: tuple[RankBar, ...]
    stragglers: tuple[int, ...]


def rank_picture(report: Report) -> RankPicture | Missing:
    """Return the picture, or why there is none."""
    ranks = report.ranks
    if ranks is None or ranks.world_size < 2:
        why = (
            "it is in the report of rank 0"
            if report.rank and report.rank.rank
            else "one process has no ranks beside it"
        )
        return Missing(name=NAME, title=TITLE, why=why)
    if not ranks.rows:
        return Missing(name=NAME, title=TITLE, why="no rank has told of itself")
    chosen = [row for row in ranks.rows if row.part.who.rank < MOST_RANKS or row.part.who.rank in ranks.stragglers]
    left_out = len(ranks.rows) - len(chosen)
    caption = " ".join(
        text
        for text in (
            "What each rank drew, with what went into waiting; below, how long its backward phase took.",
            _waiting(ranks),
            f"{left_out:,} more ranks are not drawn." if left_out else "",
            *(f"{note[:1].upper()}{note[1:]}." for note in ranks.shortcomings()),
        )
        if text
    )
    return RankPicture(
        name=NAME,
        title=TITLE,
        caption=caption,
        bars=tuple(_bar(row, ranks) for row in chosen),
        stragglers=ranks.stragglers,
    )


def _waiting(ranks: Ranks) -> str:
    if ranks.peer_wait_j is None:
        return ""
    share = f" ({percent(ranks.peer_wait_j / ranks.total_j)})" if ranks.total_j else ""
    if not ranks.stragglers:
        return f"{quantity(ranks.peer_wait_j, 'J')}{share} went into waiting for each other; no rank stands out."
    noun = "rank" if len(ranks.stragglers) == 1 else "ranks"
    names = listed([str(rank) for rank in ranks.stragglers])
    return f"The others waited for {noun} {names}: {quantity(ranks.peer_wait_j, 'J')}{share}."


def _bar(row: RankRow, ranks: Ranks) -> RankBar:
    part = row.part
    stall_j = part.stall_j
    if stall_j is not None and part.data_wait_j is not None:
        stall_j = max(stall_j - part.data_wait_j, 0.0)
    return RankBar(
        rank=part.who.rank,
        node=part.node,
        energy_j=part.energy_j,
        data_wait_j=part.data_wait_j,
        stall_j=stall_j,
        peer_wait_j=row.peer_wait_j,
        backward_s=None if part.backward is None else part.backward.seconds,
        backward_spread_s=0.0 if part.backward is None else part.backward.spread_s,
        straggles=part.who.rank in ranks.stragglers,
        counted=row.counted,
        complete=part.complete,
    )
