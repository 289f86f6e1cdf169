"""Energy of each step, with its error band."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from energy_plugins.measure.quantity import quantity
from energy_plugins.measure.report import Report
from energy_plugins.report.pictures.picture import Missing, Picture, counted, of_one_rank
from energy_plugins.report.pictures.trace import MOST_POINTS, MOST_ROWS, ROWS_A_TIME, Array, Stretches, Trace

NAME: Final = "steps"
TITLE: Final = "Energy per step"


@dataclass(frozen=True, eq=False, kw_only=True)
class StepPicture(Picture):
    """Joules of the steps, by their order."""

    energy_j: Trace
    error_bound_j: Array
    """95 % bound of a step at each point: of several steps the mean of their bounds, so that of a typical one."""
    rows: int


def step_picture(report: Report) -> StepPicture | Missing:
    """Return the picture, or why there is none.

    Raises:
        ColumnError: the columns may not be read.
    """
    steps = report.steps
    count = steps.rows if steps.rows <= MOST_ROWS else MOST_POINTS
    if not count:
        return Missing(name=NAME, title=TITLE, why="no step was marked")
    energy, bound = Stretches(steps.rows, count), Stretches(steps.rows, count)
    at = 0
    for rows in steps.windows(ROWS_A_TIME, ("energy_j", "error_bound_j")):
        number = np.arange(at, at + len(rows["energy_j"]), dtype=np.float64) + 0.5
        energy.add(number, rows["energy_j"])
        bound.add(number, rows["error_bound_j"])
        at += len(number)
    line = energy.trace()
    if not np.isfinite(line.mean).any():
        return Missing(name=NAME, title=TITLE, why="no step has joules: nothing was measured while they ran")
    single = count == steps.rows
    what = (
        "Each step, with the 95 % error bound of its joules."
        if single
        else f"A point is the mean of {steps.rows / count:,.0f} steps; the one band reaches from the least to the most "
        "that any of them drew, the other is the 95 % error bound of a single step."
    )
    return StepPicture(
        name=NAME,
        title=TITLE,
        caption=f"{what} {_spread(report)}{of_one_rank(report)}",
        energy_j=Trace(np.arange(count, dtype=np.float64), line.mean) if single else line,
        error_bound_j=bound.mean,
        rows=steps.rows,
    )


def _spread(report: Report) -> str:
    joules = report.steps["energy_j"]
    known = joules[np.isfinite(joules)]
    if len(known) < 2:
        return ""
    low, middle, high = np.percentile(known, (5, 50, 95)).tolist()
    return (
        f"Of {counted(len(known), 'step')} that were measured, half drew less than {quantity(middle, 'J')}, and nine "
        f"of ten between {quantity(low, 'J')} and {quantity(high, 'J')}."
    )
