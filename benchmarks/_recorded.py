"""Recorded trainings under power limits, replayed: what a search may be told of them, with noise and drift."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from energy_plugins.tune import Measurement
from energy_plugins.tune.limit.outlook import LEAST_FALL

Array = NDArray[np.float64]

SOURCE = (
    "ml-energy/zeus, commit 75a8b93, examples/research_reproducibility/zeus_nsdi23/trace (Zeus, NSDI'23), Apache-2.0: "
    "one recording of a limit each"
)
FILES = {"V100": "zeus_power_v100.csv", "A40": "zeus_power_a40.csv"}
STEP_S = 0.25
"""Of a step at the highest limit."""
NOISE_OF_S = 5.0
"""The length of a window whose noise is the one named; that of others goes with the square root of their length."""
TOGETHER = 0.8
"""Correlation of the noise of time and energy: at equal power what takes longer draws more."""
DRIFT = 0.01 / 600.0
"""In a second, of time and of energy, each up or down; so of the power, too."""
_FEWEST_LIMITS = 4


@dataclass(frozen=True)
class Cubic:
    """The monotone cubic through points (Fritsch and Butland 1984): between two of them it leaves neither's range."""

    at: Array
    values: Array
    slopes: Array

    @classmethod
    def through(cls, at: Array, values: Array) -> Cubic:
        """Return the one through ``values`` at ``at``, which rise."""
        widths, rises = np.diff(at), np.diff(values) / np.diff(at)
        slopes = np.zeros_like(values)
        before, after = 2 * widths[1:] + widths[:-1], widths[1:] + 2 * widths[:-1]
        same = rises[:-1] * rises[1:] > 0
        slopes[1:-1][same] = ((before + after)[same]) / (
            before[same] / rises[:-1][same] + after[same] / rises[1:][same]
        )
        slopes[0], slopes[-1] = _end(widths[:2], rises[:2]), _end(widths[:-3:-1], rises[:-3:-1])
        return cls(at, values, slopes)

    def __call__(self, at: float) -> float:
        place = int(np.clip(np.searchsorted(self.at, at) - 1, 0, len(self.at) - 2))
        width = self.at[place + 1] - self.at[place]
        u = (at - self.at[place]) / width
        left, right = self.values[place], self.values[place + 1]
        slope_left, slope_right = self.slopes[place] * width, self.slopes[place + 1] * width
        return float(
            left * (1 + 2 * u) * (1 - u) ** 2
            + slope_left * u * (1 - u) ** 2
            + right * u**2 * (3 - 2 * u)
            + slope_right * u**2 * (u - 1)
        )


def _end(widths: Array, rises: Array) -> float:
    """Return the slope at an end: that of the parabola through three points, kept monotone."""
    slope = float(((2 * widths[0] + widths[1]) * rises[0] - widths[0] * rises[1]) / (widths[0] + widths[1]))
    if slope * rises[0] <= 0:
        return 0.0
    return 3 * float(rises[0]) if rises[0] * rises[1] < 0 and abs(slope) > 3 * abs(rises[0]) else slope


@dataclass(frozen=True)
class Cell:
    """One recorded training: a step's time and energy at any limit (W), as shares of those at the highest."""

    name: str
    limits_w: Array
    """Those that were recorded."""
    time: Cubic
    energy: Cubic
    power_w: float
    """At the highest limit."""

    @property
    def low_w(self) -> float:
        """The lowest limit recorded."""
        return float(self.limits_w[0])

    @property
    def high_w(self) -> float:
        """The highest limit recorded."""
        return float(self.limits_w[-1])

    def drawn_w(self, limit_w: float) -> float:
        """Return the mean power under a limit."""
        return self.power_w * self.energy(limit_w) / self.time(limit_w)

    def optimum(self, max_slowdown: float, *, binding: bool = False) -> float:
        """Return the largest share of energy saved at any whole watt whose steps are not longer than allowed.

        With ``binding`` only limits count that lower the drawn power.
        """
        most_w = self.power_w * (1 - LEAST_FALL) if binding else math.inf
        saved = [
            1 - self.energy(limit_w)
            for limit_w in np.arange(self.low_w, self.high_w).tolist()
            if self.time(limit_w) <= 1 + max_slowdown and self.drawn_w(limit_w) <= most_w
        ]
        return max([0.0, *saved])

    @property
    def rise(self) -> float:
        """The largest share by which a step took longer at the next higher recorded limit; 0 if none did."""
        return max(float(np.max(self.time.values[1:] / self.time.values[:-1])) - 1, 0.0)


def recorded_cells(folder: Path) -> list[Cell]:
    """Return all trainings of the files in ``folder`` that were recorded under at least four limits."""
    cells = []
    for gpu, file in FILES.items():
        rows: Mapping[str, dict[float, tuple[float, float]]] = defaultdict(dict)
        with (folder / file).open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                name = " ".join((gpu, row["dataset"], row["network"], row["batch_size"], row["optimizer"]))
                rows[name][float(row["power_limit"])] = float(row["time_per_epoch"]), float(row["average_power"])
        cells += [_cell(name, found) for name, found in rows.items() if len(found) >= _FEWEST_LIMITS]
    return cells


def _cell(name: str, found: Mapping[float, tuple[float, float]]) -> Cell:
    limits_w = np.array(sorted(found))
    times, powers_w = (np.array(column) for column in zip(*(found[limit] for limit in limits_w.tolist()), strict=True))
    time = times / times[-1]
    energy = time * powers_w / powers_w[-1]
    return Cell(name, limits_w, Cubic.through(limits_w, time), Cubic.through(limits_w, energy), float(powers_w[-1]))


@dataclass
class Observer:
    """Who measures windows of a training that is known exactly: what is seen has noise and drift, by one law."""

    noise: float
    """Standard deviation of a window of `NOISE_OF_S`, as a share."""
    rng: np.random.Generator
    now_s: float = 0.0
    """How long the training has been measured."""
    drifts: Array = field(init=False)

    def __post_init__(self) -> None:
        self.drifts = DRIFT * self.rng.choice([-1.0, 1.0], 2)

    def window(self, step_s: float, energies_j: Sequence[float], count: int) -> list[Measurement]:
        """Return what each rank sees of ``count`` steps that all make together, at so many joules each.

        The errors are estimates, as they are of real steps: from the scatter of as many.
        """
        took_s = count * step_s
        error = self.noise * math.sqrt(NOISE_OF_S / took_s)
        time_drift, energy_drift = 1 + self.drifts * (self.now_s + took_s / 2)
        self.now_s += took_s
        of_time = self.rng.normal()
        own = self.rng.normal(size=(len(energies_j), 2))
        seen = error * math.sqrt(self.rng.chisquare(max(count - 1, 1)) / max(count - 1, 1))
        time_s = step_s * time_drift * (1 + error * of_time)
        measured = []
        for energy_j, (of_energy, of_power) in zip(energies_j, own.tolist(), strict=True):
            noise = error * (TOGETHER * of_time + math.sqrt(1 - TOGETHER**2) * of_energy)
            seen_j = energy_j * energy_drift * (1 + noise)
            drawn_w = energy_j / step_s * energy_drift / time_drift * (1 + error * of_power)
            measured.append(Measurement(time_s, seen_j, time_s * seen, seen_j * seen, drawn_w))
        return measured


class Replay:
    """A training that goes on while limits are tried."""

    def __init__(self, cell: Cell, noise: float, rng: np.random.Generator) -> None:
        self.cell = cell
        self.extra_s = 0.0
        """By how much longer its steps took than at the highest limit; less where they were faster."""
        self.lost_s = 0.0
        """The same without the steps that were faster."""
        self._observer = Observer(noise, rng)

    @property
    def now_s(self) -> float:
        """How long it has gone on."""
        return self._observer.now_s

    def measure(self, limit_w: float, seconds: float) -> Measurement:
        """Make as many steps as there is time for, and return what they took."""
        return self.steps(limit_w, max(round(seconds / (STEP_S * self.cell.time(limit_w))), 1))

    def steps(self, limit_w: float, count: int) -> Measurement:
        """Make ``count`` steps."""
        step_s = STEP_S * self.cell.time(limit_w)
        more_s = count * (step_s - STEP_S)
        self.extra_s += more_s
        self.lost_s += max(more_s, 0.0)
        (seen,) = self._observer.window(step_s, [STEP_S * self.cell.power_w * self.cell.energy(limit_w)], count)
        return seen
