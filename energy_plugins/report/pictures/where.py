"""Where the joules went: by what training was doing, which adds up to the total, and what of them was waste."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from energy_plugins.measure.report import Report
from energy_plugins.measure.spans import Kind
from energy_plugins.report.pictures.marked import PHASES, marked_steps
from energy_plugins.report.pictures.picture import Missing, Picture, counted, of_one_rank
from energy_plugins.report.pictures.trace import MOST

NAME: Final = "where"
TITLE: Final = "Where the joules went"
OUTSIDE: Final = "outside of steps"
REST: Final = "rest of steps"
_WORDS: Final = {
    Kind.DATA_WAIT.value: "data wait",
    Kind.VALIDATE.value: "validation",
    Kind.PREDICT.value: "prediction",
    **dict.fromkeys(("unattributed", Kind.RUN.value, Kind.FIT.value), OUTSIDE),
}
_WASTE: Final = (
    ("stall_j", "stall", "nothing was queued between steps"),
    ("data_wait_j", "data wait", "the part of stall inside the data loader"),
    ("peer_wait_j", "peer wait", "waiting for other ranks, inside backward"),
    ("underfilled_j", "underfilled", "steps too small to fill the GPU, an estimate"),
    ("idle_j", "idle", "what idle GPUs would have drawn all the while"),
)
_MOST_KINDS: Final = 12
_OTHERS: Final = "other kinds"


@dataclass(frozen=True)
class Slice:
    """One bar."""

    name: str
    energy_j: float
    error_bound_j: float | None
    share: float
    """Of the total."""
    note: str = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class WherePicture(Picture):
    """What training was doing (adds up to the total), and waste, which is inside that and may overlap."""

    work: tuple[Slice, ...]
    waste: tuple[Slice, ...]


def where_picture(report: Report) -> WherePicture | Missing:
    """Return the picture, or why there is none.

    Raises:
        ColumnError: the columns may not be read.
    """
    total_j = report.total_j
    if total_j is None or not 0 < total_j < MOST:
        why = report.missing.get("total_j", "nothing was drawn, or no reason was recorded")
        return Missing(name=NAME, title=TITLE, why=why)
    parts_j, bounds_j = _parts(report)
    marked = marked_steps(report) if "step" in parts_j else None
    note = ""
    if marked is not None and marked.steps < report.steps.rows:
        parts_j, note = _divided(parts_j, marked.rest_j), f"mostly as in {counted(marked.steps, 'marked step')}"
        bounds_j = {name: bound for name, bound in bounds_j.items() if name not in (*PHASES, "step")}
    if any(name in parts_j for name in PHASES):
        parts_j = {REST if name == "step" else name: joules for name, joules in parts_j.items()}
        bounds_j = {REST if name == "step" else name: bound for name, bound in bounds_j.items()}
    work = [
        Slice(name, joules, bounds_j.get(name), joules / total_j, note if name in (*PHASES, REST) else "")
        for name, joules in sorted(parts_j.items(), key=lambda part: -part[1])
    ]
    waste = tuple(
        Slice(name, joules, None, joules / total_j, what)
        for field, name, what in _WASTE
        if (joules := getattr(report, field)) is not None and 0 <= joules < MOST
    )
    if not work and not waste:
        return Missing(name=NAME, title=TITLE, why="the report has the total alone, and no kind of work")
    estimate = (
        f" Forward, backward and optimizer were marked in {counted(marked.steps, 'step')} of {report.steps.rows:,}; "
        "the others are divided in the same way, so their bars are estimates without a bound."
        if note and marked is not None
        else ""
    )
    return WherePicture(
        name=NAME,
        title=TITLE,
        caption="Above, what training was doing, which adds up to the total; below, what of it was waste, which lies "
        f"inside those bars and may overlap.{estimate}{of_one_rank(report)}",
        work=tuple(work),
        waste=waste,
    )


def _parts(report: Report) -> tuple[dict[str, float], dict[str, float]]:
    """Return joules and bounds by what the picture calls it; kinds beyond a dozen are one."""
    known = sorted(
        ((kind.energy_j, kind) for kind in report.kinds if kind.energy_j is not None and 0 <= kind.energy_j < MOST),
        key=lambda pair: -pair[0],
    )
    parts_j: dict[str, float] = {}
    bounds_j: dict[str, list[float]] = {}
    for place, (joules, kind) in enumerate(known):
        name = _WORDS.get(kind.kind, kind.kind) if place < _MOST_KINDS else _OTHERS
        parts_j[name] = parts_j.get(name, 0.0) + joules
        bounds_j.setdefault(name, []).append(math.nan if kind.error_bound_j is None else abs(kind.error_bound_j))
    sums = {name: math.hypot(*bounds) for name, bounds in bounds_j.items()}
    return parts_j, {name: bound for name, bound in sums.items() if bound < MOST}


def _divided(parts_j: Mapping[str, float], rest_j: float) -> dict[str, float]:
    """Return the parts with the energy of unmarked steps divided as that of the marked ones; their sum is the same."""
    unmarked_j = max(parts_j["step"] - rest_j, 0.0)
    like_j = {**{name: parts_j[name] for name in PHASES if name in parts_j}, "step": min(rest_j, parts_j["step"])}
    whole_j = math.fsum(like_j.values())
    if not whole_j > 0:
        return dict(parts_j)
    return {**parts_j, **{name: joules + unmarked_j * joules / whole_j for name, joules in like_j.items()}}
