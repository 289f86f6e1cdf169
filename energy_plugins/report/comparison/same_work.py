"""Whether runs did the same work, and what to divide by where they did not."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from energy_plugins.errors import ReportError
from energy_plugins.report.comparison.runs import Run


class WorkUnit(Enum):
    """What energy and time are divided by."""

    RUN = "run"
    STEP = "step"
    SAMPLE = "sample"
    TOKEN = "token"  # noqa: S105 - of text

    def count(self, run: Run) -> int | None:
        """Return how many a run did, None if nobody said."""
        counts = {WorkUnit.RUN: 1, WorkUnit.STEP: run.steps or None, WorkUnit.SAMPLE: run.samples}
        return counts.get(self, run.tokens)


def common_unit(runs: Sequence[Run]) -> WorkUnit:
    """Return what the work is counted in if all runs did the same. Raises ReportError if not."""
    first = runs[0]
    for run in runs:
        if work_of(run) != work_of(first):
            raise ReportError(
                f"{first.folder} did {_said(first)} and {run.folder} {_said(run)}: different work is not compared as "
                "it stands; name what to divide by with --unit sample, token, step or run"
            )
    return WorkUnit.SAMPLE if first.samples else WorkUnit.TOKEN if first.tokens else WorkUnit.RUN


def work_of(run: Run) -> tuple[int | None, ...]:
    """Return what the work of a run is known by: how it is cut into steps only where nothing else was counted."""
    counted = (run.samples or None, run.tokens or None)
    return counted if any(counted) else (run.steps,)


def _said(run: Run) -> str:
    parts = [
        f"{run.samples:,} samples" if run.samples else "",
        f"{run.tokens:,} tokens" if run.tokens else "",
        f"{run.steps:,} steps" if not (run.samples or run.tokens) else "",
    ]
    return " and ".join(filter(None, parts))


def counted_unit(runs: Sequence[Run], unit: WorkUnit) -> WorkUnit:
    """Return ``unit`` if all runs counted it. Raises ReportError if not."""
    for run in runs:
        if not unit.count(run):
            raise ReportError(f"{run.folder} does not say how many {unit.value}s it did: choose another --unit")
    return unit
