"""The search for a micro-batch as a curve with the choice."""

from __future__ import annotations

from typing import Final

from energy_plugins.measure.micro_batch_part import MicroBatchPart
from energy_plugins.measure.micro_batch_summary import micro_batch_lines
from energy_plugins.measure.report import Report
from energy_plugins.report.pictures.picture import Missing
from energy_plugins.report.pictures.search import Compared, SearchPicture

NAME: Final = "micro-batch-search"
TITLE: Final = "Search for a micro-batch"


def micro_batch_search_picture(report: Report) -> SearchPicture | Missing:
    """Return the picture, or why there is none."""
    part = report.micro_batch
    if part is None:
        return Missing(name=NAME, title=TITLE, why="no micro-batch was asked for")
    sizes = _sizes(part)
    if part.batch is None or len(sizes) < 2:
        return Missing(name=NAME, title=TITLE, why=part.why or "no two sizes were measured")
    refused = ", ".join(f"{one.size} ({one.why})" for one in part.tried if one.why)
    unusable = f"Not usable: {refused}. " if refused else ""
    return SearchPicture(
        name=NAME,
        title=TITLE,
        caption=f"Optimizer steps against those with your {part.batch} samples at once, of the same effective batch. "
        f"{unusable}{_outcome(part)}",
        setting="samples at once",
        windows=(),
        means=sizes,
        found=float(part.batch),
        chosen=None if part.chosen is None else float(part.chosen),
        logarithmic=True,
    )


def _sizes(part: MicroBatchPart) -> tuple[Compared, ...]:
    """Return what was measured, by size: the saving is the search's own, free of drift, and times are those seen."""
    own = next((one for one in part.tried if one.size == part.batch), None)
    own_s = None if own is None else own.step_time_s
    if own_s is None or not own_s > 0:
        return ()
    savings = {one.size: 0.0 if one.size == part.batch else one.saving for one in part.tried}
    return tuple(
        Compared(float(one.size), -saving, one.step_time_s / own_s - 1.0)
        for one in sorted(part.tried, key=lambda one: one.size)
        if one.size > 0 and one.step_time_s is not None and (saving := savings[one.size]) is not None
    )


def _outcome(part: MicroBatchPart) -> str:
    lines = micro_batch_lines(part, lambda label, text: [f"{label} {text}".strip()])
    return " ".join(f"{text[:1].upper()}{text[1:]}." for text in lines)
