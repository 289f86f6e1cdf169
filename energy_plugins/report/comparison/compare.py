"""Repeated runs of two or more sides held against each other, for the same work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

import numpy as np

from energy_plugins.errors import ReportError
from energy_plugins.report.comparison.contrasts import Design, Difference, difference
from energy_plugins.report.comparison.notes import notes_of
from energy_plugins.report.comparison.runs import LeftOut, Run, read_runs, refuse_twice
from energy_plugins.report.comparison.same_work import WorkUnit, common_unit, counted_unit

CONFIDENCE: Final = 0.95


class Metric(Enum):
    """What is compared."""

    ENERGY = "energy"
    TIME = "time"
    POWER = "power"


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side, and its geometric means, with nothing corrected."""

    label: str
    runs: tuple[Run, ...]
    means: Mapping[Metric, float]
    """Joules and seconds per unit of work, and watts."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """How one side stands to the first one in one metric; differences are relative, -0.03 is 3 % less."""

    label: str
    base: str
    metric: Metric
    relative: float
    low: float | None
    high: float | None
    """The interval; None if nothing was repeated."""
    raw: float
    """The relative difference with nothing corrected."""
    corrected_for: tuple[str, ...]
    places_confounded: bool
    """Whether offsets of places cannot be told from the difference; the interval allows for them."""

    @property
    def shown(self) -> bool:
        """Whether a difference is shown: the interval does not hold 0."""
        return self.low is not None and self.high is not None and not self.low <= 0.0 <= self.high


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Sides, and how each stands to the first. All intervals of a metric hold together with 95 % confidence."""

    unit: WorkUnit
    simulated: bool
    sides: tuple[Side, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


def compare_folders(paths: Sequence[Path], unit: WorkUnit | None = None, reference: Path | None = None) -> Comparison:
    """Compare what lies in ``paths``, each the folder of a run or of repeated runs; ``reference`` holds such, too.

    Raises:
        ReportError: see `compare`; or a folder holds no run that can be compared.
    """
    found = [read_runs(path) for path in paths]
    known, known_out = ([], []) if reference is None else read_runs(reference)
    left_out = [one for some in (*(out for _, out in found), known_out) for one in some]
    sides = dict(zip(labels(paths), [runs for runs, _ in found], strict=True))
    return compare(sides, unit, left_out, reference=known)


def compare(
    sides: Mapping[str, Sequence[Run]],
    unit: WorkUnit | None = None,
    left_out: Sequence[LeftOut] = (),
    *,
    reference: Sequence[Run] = (),
) -> Comparison:
    """Hold each side against the first.

    Args:
        sides: runs by label; at least two sides, each with runs.
        unit: what to divide by. Without it all runs must have done the same work.
        left_out: what the reader of the comparison should know to be missing.
        reference: runs of one program on the places of the sides, by which the offsets of these are known; what it
            does may be something else than what the sides do.

    Raises:
        ReportError: there are fewer than two sides, the runs did different work and no unit is named, nobody counted
            that unit, one run is there twice, some runs are simulated and others are not, or runs of the reference did
            different work.
    """
    if len(sides) < 2:
        raise ReportError(f"{len(sides)} side cannot be compared: name two folders or more")
    runs = [run for some in sides.values() for run in some]
    refuse_twice([*runs, *reference])
    if len({run.simulated for run in (*runs, *reference)}) > 1:
        raise ReportError("SIMULATED runs cannot be compared with measured ones")
    unit = common_unit(runs) if unit is None else counted_unit(runs, unit)
    own = common_unit(reference) if reference else unit
    measured = [*((run, unit) for run in runs), *((run, own) for run in reference)]
    values = {metric: [_value(run, metric, of) for run, of in measured] for metric in Metric}
    design = Design(
        side=[number for number, some in enumerate((*sides.values(), reference)) for _ in some],
        place=[run.place for run, _ in measured],
        round=[run.round for run in runs] + [""] * len(reference),
        start_c=[run.start_c for run, _ in measured],
    )
    names = list(sides)
    told = tuple(
        Side(label=label, runs=tuple(some), means={m: _mean([_value(r, m, unit) for r in some]) for m in Metric})
        for label, some in sides.items()
    )
    confidence = 1 - (1 - CONFIDENCE) / (len(names) - 1)
    findings = tuple(
        _finding(told[number], told[0], metric, difference(np.log(values[metric]), design, number, 0, confidence))
        for number in range(1, len(names))
        for metric in Metric
    )
    return Comparison(
        unit=unit,
        simulated=runs[0].simulated,
        sides=told,
        findings=findings,
        notes=tuple(notes_of(sides, unit, left_out, reference)),
    )


def labels(paths: Sequence[Path]) -> list[str]:
    """Return what to call each path: its last parts, as many as tell them apart. Raises ReportError for one twice."""
    whole = [path.resolve() for path in paths]
    if twice := next((path for path in whole if whole.count(path) > 1), None):
        raise ReportError(f"{twice} is named twice: name each side once")
    for parts in range(1, max(len(path.parts) for path in whole) + 1):
        short = [str(Path(*path.parts[-parts:])) for path in whole]
        if len(set(short)) == len(short):
            return short
    raise AssertionError


def _finding(side: Side, base: Side, metric: Metric, found: Difference) -> Finding:
    return Finding(
        label=side.label,
        base=base.label,
        metric=metric,
        relative=math.expm1(found.log),
        low=None if found.low is None else math.expm1(found.low),
        high=None if found.high is None else math.expm1(found.high),
        raw=side.means[metric] / base.means[metric] - 1,
        corrected_for=found.corrected_for,
        places_confounded=found.places_confounded,
    )


def _value(run: Run, metric: Metric, unit: WorkUnit) -> float:
    whole = {Metric.ENERGY: run.energy_j, Metric.TIME: run.duration_s, Metric.POWER: run.power_w}[metric]
    return whole if metric is Metric.POWER else whole / (unit.count(run) or 1)


def _mean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values))
