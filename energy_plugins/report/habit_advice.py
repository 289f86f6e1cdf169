"""Advice on what a training does beside its steps, and on the limit that it does them under. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from energy_plugins.measure.quantity import percent, quantity
from energy_plugins.measure.report import Report
from energy_plugins.measure.report_parts import KindTotal
from energy_plugins.measure.spans import Kind
from energy_plugins.report.advice_item import Advice, Sums

_CHECKPOINTS: Final = 0.02
"""Share from which on checkpoints are too many; some are needed."""
_OUTSIDE: Final = 0.05
"""Share from which on time outside of steps is worth a line; a start and an end are needed."""


def checkpoints(sums: Sums) -> Iterator[Advice]:
    """Checkpoints that cost more than a few joules."""
    total = next((kind for kind in sums.report.kinds if kind.kind == Kind.CHECKPOINT.value), None)
    if total is None or total.energy_j is None or not _own_worth(sums.report, total.energy_j, _CHECKPOINTS):
        return
    each = f", {quantity(total.energy_j / total.count, 'J')} each" if total.count else ""
    share = total.energy_j / (sums.report.total_j or math.nan)
    yield Advice(
        "checkpoints",
        total.energy_j,
        share,
        f"{percent(share)} of this run's energy was drawn while checkpoints were written: write fewer, or in the "
        "background",
        f"checkpoint: {quantity(total.energy_j, 'J')} in {total.count:,} stretches{each}",
    )


def outside(sums: Sums) -> Iterator[Advice]:
    """What was drawn before, between and after all that training does."""
    report = sums.report
    outside_j = _sum_j(kind for kind in report.kinds if kind.kind in ("unattributed", Kind.RUN.value, Kind.FIT.value))
    if outside_j is None:
        return
    between_j = max((report.stall_j or 0.0) - (report.data_wait_j or 0.0), 0.0)  # waiting for data is a kind of its own
    joules = outside_j - between_j
    if not _own_worth(report, joules, _OUTSIDE):
        return
    share = joules / (report.total_j or math.nan)
    yield Advice(
        "idle",
        joules,
        share,
        f"{percent(share)} of this run's energy was drawn outside of steps, validation and checkpoints: start training "
        "sooner, end the process with it, and mark what else it does",
        f"energy of no such span: {quantity(outside_j, 'J')}, stalls between steps taken off",
    )


def power_limit(sums: Sums) -> Iterator[Advice]:
    """A limit that nobody searched for, may set, or that does not bind."""
    part = sums.report.power_limit
    if part is None:
        yield Advice(
            "power limit",
            None,
            None,
            "no power limit was searched for: PowerLimitTuner (Lightning), PowerLimitCallback (transformers) or "
            "power_limit.enabled find the one of least energy",
            "the report has no section power_limit; what it would save, only trying tells",
        )
    elif part.advice and part.chosen is None:
        yield Advice("power limit", None, None, part.advice, part.why or "no limit could be set in this run")
    elif part.binding is False:
        yield Advice(
            "power limit",
            None,
            None,
            "the power limit in force lowers nothing and saves nothing: search for one that binds, or leave it out",
            f"{part.chosen:g} {part.unit} is above what was drawn"
            if part.chosen is not None
            else "it was found not to bind",
        )


def _own_worth(report: Report, joules: float, least: float) -> bool:
    total_j = report.total_j
    return total_j is not None and 0.0 < least * total_j <= joules < math.inf


def _sum_j(kinds: Iterator[KindTotal]) -> float | None:
    joules = [kind.energy_j for kind in kinds if kind.energy_j is not None]
    return math.fsum(joules) if joules else None
