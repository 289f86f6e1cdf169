"""Ranks on disk: where each one's report lies, and the merge of what is found there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from energy_plugins.errors import EnergyError
from energy_plugins.measure.rank_part import RankPart
from energy_plugins.measure.ranks import Ranks
from energy_plugins.measure.report import Report

_PREFIX = "rank-"


def rank_folder(folder: Path, rank: int) -> Path:
    """Return where ``rank`` has its report: rank 0 in the run's ``folder``, the others in folders inside it."""
    return folder / f"{_PREFIX}{rank}" if rank else folder


def parts_on_disk(folder: Path) -> tuple[tuple[RankPart, ...], tuple[str, ...]]:
    """Return what ranks other than 0 left in the run's ``folder``, and what of it cannot be read."""
    parts, faults = [], []
    for place in sorted(folder.glob(f"{_PREFIX}*")):
        try:
            report = Report.load(place)
            if report.rank is not None:  # else it is somebody else's
                parts.append(RankPart.of(report))
        except EnergyError as error:
            faults.append(f"what {place.name} left cannot be read: {error}")
    return tuple(parts), tuple(faults)


def with_ranks(report: Report, ranks: Ranks) -> Report:
    """Return the report with the whole training in it; `peer_wait_j` is what its own rank waited."""
    own = next((row for row in ranks.rows if report.rank and row.part.who.rank == report.rank.rank), None)
    missing = dict(report.missing)
    peer_wait_j = None if own is None else own.peer_wait_j
    if peer_wait_j is None:
        missing["peer_wait_j"] = ranks.missing.get("peer_wait_j", "this rank did not mark its backward phases")
    else:
        missing.pop("peer_wait_j", None)
    return replace(report, ranks=ranks, peer_wait_j=peer_wait_j, missing=missing)


def completed_from_disk(report: Report, folder: Path) -> Report:
    """Return rank 0's report with what it lacks of the others, as far as their folders hold it.

    Ranks that were killed before they could be merged are found in this way; any other report is as it was.
    """
    who, ranks = report.rank, report.ranks
    if who is None or who.alone or who.rank or (ranks is not None and ranks.complete):
        return report
    found, faults = parts_on_disk(folder)
    known = [RankPart.of(report)] if ranks is None else [row.part for row in ranks.rows]
    merged = Ranks.merge([*known, *found], who.world_size)
    said = [text for text in (*faults, *merged.shortcomings()) if text not in report.warnings]
    return with_ranks(replace(report, warnings=(*report.warnings, *said)), merged)
