"""What training was doing, as shares of equal stretches of time: steps, waits, validation, checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from energy_plugins.measure.columns import Columns
from energy_plugins.measure.report import Report
from energy_plugins.measure.spans import Kind
from energy_plugins.report.pictures.picture import MOST_SHARES, Shares, edges
from energy_plugins.report.pictures.trace import ROWS_A_TIME, Array

STEP: Final = "step"
WAIT: Final = "data wait"
_DRAWN: Final = {
    Kind.VALIDATE.value: "validation",
    Kind.TEST.value: "test",
    Kind.PREDICT.value: "prediction",
    Kind.CHECKPOINT.value: "checkpoint",
}
"""Kinds that take turns with steps, and what they are called here."""


class Cover:
    """How much of each stretch between edges some spans cover: exact, however many and in whatever order they come."""

    def __init__(self, edges_s: Array) -> None:
        self._edges_s = edges_s
        self._until_s = np.zeros(len(edges_s))

    def add(self, start_s: NDArray[Any], end_s: NDArray[Any]) -> None:
        """Add spans; one that has no begin or no end, or ends before it begins, covers nothing."""
        whole = np.isfinite(start_s) & np.isfinite(end_s) & (end_s > start_s)
        last = self._edges_s[-1]
        starts = np.clip(start_s[whole].astype(np.float64), 0.0, last)
        ends = np.clip(end_s[whole].astype(np.float64), 0.0, last)
        self._until_s += self._since(starts) - self._since(ends)

    def _since(self, times_s: Array) -> Array:
        """Return for each edge the sum of how long before it each of the times was."""
        times_s = np.sort(times_s)
        sums = np.concatenate([[0.0], np.cumsum(times_s)])
        count = np.searchsorted(times_s, self._edges_s)
        return np.asarray(count * self._edges_s - sums[count])

    def shares(self) -> Array:
        """Return the covered share of each stretch; spans that overlap count once they fill it."""
        return np.clip(np.diff(self._until_s) / np.diff(self._edges_s), 0.0, 1.0)


def doing(report: Report) -> Shares:
    """Return how a run's time was spent; what is left to 1 is time outside of all spans that are drawn.

    Raises:
        ColumnError: the columns may not be read.
    """
    edges_s = edges(report.duration_s, MOST_SHARES)
    step, wait_inside, wait_outside = Cover(edges_s), Cover(edges_s), Cover(edges_s)
    others = {kind: Cover(edges_s) for kind in _DRAWN if kind in report.span_kinds}
    for start_s, end_s in _times(report.steps):
        step.add(start_s, end_s)
    step_start_s, step_end_s = report.steps["start_s"], report.steps["end_s"]
    codes = {name: code for code, name in enumerate(report.span_kinds)}
    for rows in report.spans.windows(ROWS_A_TIME, ("kind", "start_s", "end_s")):
        for kind, cover in others.items():
            chosen = rows["kind"] == codes[kind]
            cover.add(rows["start_s"][chosen], rows["end_s"][chosen])
        waits = rows["kind"] == codes.get(Kind.DATA_WAIT.value, -1)
        start_s, end_s = rows["start_s"][waits], rows["end_s"][waits]
        inside = _inside(start_s, step_start_s, step_end_s)
        wait_inside.add(start_s[inside], end_s[inside])
        wait_outside.add(start_s[~inside], end_s[~inside])
    worked = np.maximum(step.shares() - wait_inside.shares(), 0.0)
    waited = np.minimum(wait_inside.shares() + wait_outside.shares(), 1.0 - worked)
    drawn = [(STEP, worked), (WAIT, waited), *((_DRAWN[kind], cover.shares()) for kind, cover in others.items())]
    return Shares(edges_s, tuple((name, shares) for name, shares in drawn if shares.any()))


def _times(steps: Columns) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    for rows in steps.windows(ROWS_A_TIME, ("start_s", "end_s")):
        yield rows["start_s"], rows["end_s"]


def _inside(at_s: NDArray[Any], starts_s: NDArray[Any], ends_s: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell of each time whether it lies in a step; steps are in order."""
    if not len(starts_s):
        return np.zeros(len(at_s), bool)
    step = np.searchsorted(starts_s, at_s, side="right") - 1
    return np.asarray((step >= 0) & (at_s < ends_s[np.maximum(step, 0)]))
