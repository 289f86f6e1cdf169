"""How the energy of unmarked steps is divided: as in those whose phases were marked, which is an estimate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from energy_plugins.measure.report import Report
from energy_plugins.measure.spans import Kind
from energy_plugins.report.pictures.trace import ROWS_A_TIME

PHASES: Final = (Kind.FORWARD.value, Kind.BACKWARD.value, Kind.OPTIMIZER.value)


@dataclass(frozen=True)
class MarkedSteps:
    """The steps in which forward, backward or optimizer were marked."""

    steps: int
    rest_j: float
    """Of their joules those that were in none of these spans, nor in waiting for data."""


def marked_steps(report: Report) -> MarkedSteps | None:
    """Return what the marked steps say of the others; None without any, or where their joules are not known.

    Raises:
        ColumnError: the columns may not be read.
    """
    codes = [code for code, name in enumerate(report.span_kinds) if name in PHASES]
    begin_s, end_s = report.steps["start_s"], report.steps["end_s"]
    if not codes or not len(begin_s):
        return None
    marked = np.zeros(len(begin_s), bool)
    inside_j = np.zeros(len(begin_s))
    if Kind.DATA_WAIT.value in report.span_kinds:
        codes.append(report.span_kinds.index(Kind.DATA_WAIT.value))
    for rows in report.spans.windows(ROWS_A_TIME, ("kind", "start_s", "energy_j")):
        chosen = np.isin(rows["kind"], codes) & np.isfinite(rows["energy_j"])
        step = _step_of(rows["start_s"][chosen], begin_s, end_s)
        found = step >= 0
        np.add.at(inside_j, step[found], rows["energy_j"][chosen][found])
        phase = rows["kind"][chosen][found]
        marked[step[found][np.isin(phase, codes[: len(PHASES)])]] = True
    marked &= np.isfinite(report.steps["energy_j"])
    count = int(marked.sum())
    rest_j = float((report.steps["energy_j"][marked] - inside_j[marked]).sum())
    return MarkedSteps(count, max(rest_j, 0.0)) if count and np.isfinite(rest_j) else None


def _step_of(at_s: NDArray[Any], begin_s: NDArray[Any], end_s: NDArray[Any]) -> NDArray[np.int64]:
    """Return the step in which each time lies, -1 for none; steps are in order."""
    step = np.searchsorted(begin_s, at_s, side="right") - 1
    return np.where((step >= 0) & (at_s < end_s[np.maximum(step, 0)]), step, -1)
