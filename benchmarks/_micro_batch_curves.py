"""Recorded energy against micro-batch, replayed: what a search may be told of it, with noise and drift."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _recorded import Observer

from energy_plugins.tune.micro_batch.search import Outcome, OutOfMemory, Refused

RECORDED = Path(__file__).parent / "recorded" / "h200_micro_batches.csv"
SOURCE = (
    "one H200, driver 580.159, torch 2.11, bf16 autocast, random data, one recording of a size each; every micro-batch "
    "paid an optimizer step"
)
SPILL = "modelled spill"
_SPILL_PER_DECADE = 3.0
"""By which energy rises once a layer leaves a cache (BUTTER-E, arXiv:2403.08151)."""
_SPILL_FROM = 1024
SAMPLE_J, SAMPLE_S = 0.1, 2e-4
"""Of the modelled curve."""


@dataclass(frozen=True)
class Point:
    """One size: what a sample takes and costs with it, and what memory the training has in use."""

    sample_s: float
    sample_j: float
    gib: float


Curve = Mapping[int, Point]


@dataclass(frozen=True)
class Accumulated:
    """Both ends of a curve as measured with accumulation, at equal effective batch (interleaved windows)."""

    of: str
    sizes: tuple[int, int]
    joules_per_sample: tuple[float, float]
    what: str


ENDS = (
    Accumulated("ResNet-50", (8, 256), (0.444, 0.136), "ResNet-50 accumulated"),
    Accumulated("ResNet-50", (8, 256), (0.686, 0.408), "ResNet-50 GroupNorm accumulated"),
    Accumulated("GPT-2", (4, 64), (2.34, 1.97), "GPT-2 accumulated"),
)


def recorded_curves(path: Path) -> dict[str, Curve]:
    """Return the curves of a file, and those between the recorded ends of accumulation; and a modelled one."""
    curves: dict[str, dict[int, Point]] = {}
    with path.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            point = Point(float(row["seconds_per_sample"]), float(row["joules_per_sample"]), float(row["gib"] or "nan"))
            curves.setdefault(row["model"], {})[int(row["micro_batch"])] = point
    between = {ends.what: _between(curves[ends.of], ends) for ends in ENDS}
    return {**curves, **between, SPILL: _spill()}


def _between(curve: Curve, ends: Accumulated) -> Curve:
    """Return a recorded curve, shifted and scaled to two recorded ends: their shape is not recorded, so it is ours."""
    (low, high), (first_j, last_j) = ends.sizes, ends.joules_per_sample
    scale = (first_j - last_j) / (curve[low].sample_j - curve[high].sample_j)
    shift = first_j - scale * curve[low].sample_j
    made = {}
    for size, point in curve.items():
        if size <= high:
            sample_j = shift + scale * point.sample_j
            made[size] = Point(point.sample_s * sample_j / point.sample_j, sample_j, point.gib)
    return made


def _spill() -> Curve:
    """Return a curve that no recording has: no fixed cost, and a cache that is left above a size."""
    rises = math.log10(_SPILL_PER_DECADE)
    made = {}
    for size in (2**power for power in range(6, 14)):
        dearer = max(size / _SPILL_FROM, 1.0) ** rises
        made[size] = Point(SAMPLE_S * dearer, SAMPLE_J * dearer, math.nan)
    return made


@dataclass(frozen=True)
class Cell:
    """One training as a user has set it: batch times accumulation, on a GPU of some memory."""

    curve: str
    batch: int
    accumulation: int
    gib: float = math.inf

    @property
    def name(self) -> str:
        """As it is printed."""
        memory = f", {self.gib:.0f} GiB" if math.isfinite(self.gib) else ""
        return f"{self.curve}, {self.batch} x {self.accumulation}{memory}"

    @property
    def share(self) -> int:
        """Samples of an optimizer step."""
        return self.batch * self.accumulation


class SizeReplay:
    """A training that goes on while micro-batches are tried."""

    def __init__(self, cell: Cell, curve: Curve, noise: float, rng: np.random.Generator, beside_s: float = 0.0) -> None:
        self.cell = cell
        self.curve = curve
        self.beside_s = beside_s
        """What each window takes beside its steps."""
        self._observer = Observer(noise, rng)

    @property
    def now_s(self) -> float:
        """How long it has gone on."""
        return self._observer.now_s

    def measure(self, size: int, seconds: float) -> Outcome:
        """Make as many steps as so many seconds need, and return what they took."""
        if size not in self.curve:
            return Refused(size, "it was not recorded")
        point = self.curve[size]
        if point.gib > self.cell.gib:
            return OutOfMemory(size)
        step_s = self.cell.share * point.sample_s
        count = max(math.ceil(seconds / step_s), 1)
        (seen,) = self._observer.window(step_s, [self.cell.share * point.sample_j], count)
        self._observer.now_s += self.beside_s
        return seen

    def best_j(self, sizes: set[int]) -> float:
        """Return the least energy of a sample at any of ``sizes`` that fits."""
        return min(self.curve[size].sample_j for size in sizes if self._runs(size))

    def saving(self, size: int) -> float:
        """Return what a size really saves: against the user's setting, or against the best if that does not fit."""
        return 1 - self.curve[size].sample_j / self.start_j(size)

    def start_j(self, fallback: int) -> float:
        """Return what a sample costs as the user set it; of ``fallback`` if that does not fit."""
        return self.curve[self.cell.batch if self._runs(self.cell.batch) else fallback].sample_j

    def _runs(self, size: int) -> bool:
        return size in self.curve and not self.curve[size].gib > self.cell.gib
