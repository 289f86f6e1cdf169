"""All ranks of a training in a few lines and a table; the report's page of text arranges both."""

from __future__ import annotations

from typing import Final

from energy_plugins.measure.quantity import bounded, duration, percent, quantity
from energy_plugins.measure.ranks import RankRow, Ranks

MOST_ROWS: Final = 64
_NODE: Final = 16
_GPU: Final = 12


def in_short(ranks: Ranks) -> list[str]:
    """Return sentences: the sums of all ranks, who waited for whom, and what limits the sums."""
    there = f"{len(ranks.rows)} of {ranks.world_size} ranks" if ranks.absent else f"{ranks.world_size} ranks"
    where = f"{there} on {_counted(ranks.nodes, 'node')}, {_counted(ranks.gpus, 'GPU')}"
    return [f"{where}: {_energy(ranks)}", *_work(ranks), *_waiting(ranks), *ranks.shortcomings(), *ranks.notes]


def rows(ranks: Ranks) -> list[tuple[str, ...]]:
    """Return the heading and a row for each rank, the first `MOST_ROWS` and all stragglers."""
    shown = [row for row in ranks.rows if row.part.who.rank < MOST_ROWS or row.part.who.rank in ranks.stragglers]
    heading = ("rank", "node", "GPU", "energy", "per step", "backward", "waiting", "")
    return [heading, *(_row(row, straggles=row.part.who.rank in ranks.stragglers) for row in shown)]


def _energy(ranks: Ranks) -> str:
    if ranks.total_j is None:
        return f"not measured: {ranks.missing.get('total_j', 'no reason was recorded')}"
    joules = bounded(ranks.total_j, ranks.error_bound_j or 0.0, "J")
    return f"{joules} (95 %) in {duration(ranks.duration_s)}; readings cover {percent(ranks.coverage)} of it"


def _work(ranks: Ranks) -> list[str]:
    done = ((ranks.samples, "sample"), (ranks.tokens, "token"))
    rates = [
        f"{count:,} {noun}s, {quantity(ranks.total_j / count, 'J')}/{noun}"
        for count, noun in done
        if count and ranks.total_j is not None
    ]
    cpu = [] if ranks.cpu_j is None else [f"CPUs of all nodes {quantity(ranks.cpu_j, 'J')}, not in the sum"]
    return ["; ".join(rates + cpu)] if rates or cpu else []


def _waiting(ranks: Ranks) -> list[str]:
    if ranks.peer_wait_j is None:
        return []
    share = f" ({percent(ranks.peer_wait_j / ranks.total_j)})" if ranks.total_j else ""
    whom = (
        f"for rank {', '.join(map(str, ranks.stragglers))}" if ranks.stragglers else "for each other; none stands out"
    )
    return [f"{quantity(ranks.peer_wait_j, 'J')}{share} drawn while waiting {whom}"]


def _row(row: RankRow, *, straggles: bool) -> tuple[str, ...]:
    part = row.part
    remarks = ["<- the others wait for it"] if straggles else []
    remarks += [] if row.counted else ["GPU counted elsewhere"]
    remarks += [] if part.complete else ["never told the end"]
    return (
        str(part.who.rank),
        part.node[:_NODE],
        ", ".join(gpu.uuid[:_GPU] for gpu in part.gpus[:1]) + (f" +{more}" if (more := len(part.gpus) - 1) > 0 else ""),
        "not measured" if part.energy_j is None else quantity(part.energy_j, "J"),
        "" if part.step_j is None else quantity(part.step_j, "J"),
        "" if part.backward is None else quantity(part.backward.seconds, "s"),
        "" if row.peer_wait_j is None else quantity(row.peer_wait_j, "J"),
        "; ".join(remarks),
    )


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
