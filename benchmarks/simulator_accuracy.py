"""SIMULATED: how far the joules of the meter are from the simulator's true ones, and whether their bounds hold.

    python benchmarks/simulator_accuracy.py        half a minute; exits with 1 if a bar is missed

Everything runs in virtual time from fixed seeds, so every run gives the same figures. The constants of the error bound
(`energy_plugins.measure.curve.ErrorModel`) were calibrated on the random loads of two seeds; the bars are for another.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise
from typing import Self

import numpy as np
from _common import Bar, Interval, bootstrap, finish, print_table, progress, wilson
from numpy.typing import NDArray

from energy_plugins import EnergyMeter, Report
from energy_plugins.measure.spans import Kind
from energy_plugins.testing import (
    H200,
    Constant,
    Fault,
    Load,
    Profile,
    Script,
    Simulation,
    Square,
    Step,
    random_load,
    simulated_gpus,
)

Values = NDArray[np.float64]
Rng = np.random.Generator

TOTALS = 900
RUNS = 240
CALIBRATION_SEEDS = (1, 7)
CALIBRATION_RUNS = 24
HELD_OUT_SEED = 2026
STEP_RUNS = 60
KIND_RUNS = 40
GAP_S = 0.0005

LOAD_S = 45.0
FAST_S = 0.025
"""Loads that repeat within this are faster than the power samples, which come every 20 ms."""
LENGTHS_S = (0.02, 0.05, 0.08, 0.125, 0.3, 1.0, 4.0)
STEPS_S = (0.004, 0.01, 0.02, 0.05, 0.1, 0.4)
WAITS_S = (0.0001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.4)


@dataclass(frozen=True)
class Windows:
    """Measured stretches of time beside what was true of them; columns of equal length."""

    run: NDArray[np.int64]
    family: NDArray[np.str_]
    length_s: Values
    true_j: Values
    energy_j: Values
    error_bound_j: Values

    @classmethod
    def join(cls, parts: Sequence[Windows]) -> Self:
        """Return the windows of ``parts``, one after the other."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def take(self, rows: NDArray[np.bool_]) -> Windows:
        """Return some of them."""
        return Windows(*(getattr(self, field.name)[rows] for field in fields(self)))

    def between(self, low_s: float, high_s: float) -> Windows:
        """Return those of a length from ``low_s`` to less than ``high_s``."""
        return self.take((self.length_s >= low_s) & (self.length_s < high_s))

    def of(self, family: str) -> Windows:
        """Return those of one family of loads."""
        return self.take(self.family == family)

    @property
    def error(self) -> Values:
        """Relative error of each."""
        return self.energy_j / self.true_j - 1.0

    @property
    def bound(self) -> Values:
        """Relative error bound of each."""
        return self.error_bound_j / self.true_j

    @property
    def contained(self) -> NDArray[np.bool_]:
        """Whether the bound of each contains the truth."""
        return np.abs(self.energy_j - self.true_j) <= self.error_bound_j

    def table(self) -> dict[str, NDArray[np.generic]]:
        """Return them as columns for the result file."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def figures(self) -> dict[str, float]:
        """Return what there is to say of them; errors and bounds are relative."""
        if not len(self.run):
            return {"count": 0}
        size = np.abs(self.error)
        return {
            "count": len(size),
            "rms": float(np.sqrt(np.mean(size**2))),
            "p95": float(np.percentile(size, 95)),
            "max": float(size.max()),
            "coverage": float(self.contained.mean()),
            "median_bound": float(np.median(self.bound)),
        }

    def coverage_interval(self) -> Interval:
        """Return the interval of the share of bounds that hold, drawing whole runs: one load breaks many bounds."""
        groups = [self.contained[self.run == run].astype(float) for run in np.unique(self.run)]
        return bootstrap(groups, lambda values: float(values.mean()))


@dataclass(frozen=True)
class Sensors:
    """What the simulated GPU lacks, and which of its power sensors is used."""

    profile: Profile = H200
    faults: tuple[Fault, ...] = ()
    power: str | None = None


ALL = Sensors()


@contextmanager
def measured(rng: Rng, load: Load, sensors: Sensors = ALL) -> Iterator[tuple[Simulation, EnergyMeter, int]]:
    """Yield a simulation that plays ``load``, a running meter, and the time (ns) at which its window opened."""
    before, seed = Constant(float(rng.uniform(120, 700))), int(rng.integers(2**31))
    with simulated_gpus(before, virtual=True, seed=seed, profile=sensors.profile, faults=sensors.faults) as sim:
        sim.advance(float(rng.uniform(0.1, 1.5)))
        sim.gpus[0].play(load)
        sim.advance(float(rng.uniform(0.0, 1.2)))
        meter = EnergyMeter("SIMULATED", power_sensor=sensors.power)
        meter.start()
        yield sim, meter, sim.clock.now_ns()


def compare(sim: Simulation, report: Report, start_ns: int, run: int, labels: Mapping[str, str]) -> Windows:
    """Return the spans of ``report`` whose kind is in ``labels``, which says what family each kind stands for."""
    spans = report.spans
    names = np.array(report.span_kinds)[spans["kind"]]
    rows = np.isin(names, list(labels))
    columns = {name: spans[name][rows] for name in ("start_s", "end_s", "energy_j", "error_bound_j")}
    family = np.array([labels[name] for name in names[rows].tolist()], np.str_)
    return windows_of(sim, columns, start_ns, run, family)


def windows_of(
    sim: Simulation, columns: dict[str, Values], start_ns: int, run: int, family: NDArray[np.str_]
) -> Windows:
    """Return the stretches of time in ``columns`` (seconds from ``start_ns``), with their true joules."""
    begin_ns = start_ns + np.rint(columns["start_s"] * 1e9).astype(np.int64)
    end_ns = start_ns + np.rint(columns["end_s"] * 1e9).astype(np.int64)
    gpu = sim.gpus[0]
    true_j = [gpu.true_energy_j(a, b) for a, b in zip(begin_ns.tolist(), end_ns.tolist(), strict=True)]
    return Windows(
        run=np.full(len(begin_ns), run),
        family=family,
        length_s=columns["end_s"] - columns["start_s"],
        true_j=np.array(true_j),
        energy_j=columns["energy_j"],
        error_bound_j=columns["error_bound_j"],
    )


# ---- totals of whole windows


def simple_load(rng: Rng, length_s: float) -> tuple[str, Load]:
    """Return the family and one load: a constant, a step in or near the window, or a square wave of 10 to 1000 ms."""
    low_w, high_w = sorted(rng.uniform(80.0, 700.0, 2).tolist())
    match int(rng.integers(3)):
        case 0:
            return "constant", Constant(high_w)
        case 1:
            before_w, after_w = rng.permutation([low_w, high_w]).tolist()
            return "step", Step(before_w, after_w, float(rng.uniform(0.0, length_s + 1.2)))
        case _:
            return "square", Square(low_w, high_w, _period_s(rng), float(rng.uniform(0.1, 0.9)))


def _period_s(rng: Rng) -> float:
    """Return a period anywhere in 10-1000 ms, or close to one that the 20 ms samples alias with."""
    if rng.random() < 0.5:
        return float(np.exp(rng.uniform(np.log(0.01), np.log(1.0))))
    return float(rng.choice([0.01, 0.02, 0.04, 0.1, 0.2]) * rng.uniform(0.99, 1.01))


def measure_totals(sensors: Sensors = ALL, count: int = TOTALS) -> Windows:
    """Return totals of windows of 1.5 to 8 s."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    parts = []
    for run in progress("totals", count):
        length_s = float(np.exp(rng.uniform(np.log(1.5), np.log(8.0))))
        family, load = simple_load(rng, length_s)
        with measured(rng, load, sensors) as (sim, meter, start_ns):
            sim.advance(length_s)
            meter.stop()
            report = meter.report()
            whole = {"start_s": 0.0, "end_s": report.duration_s}
            whole |= {"energy_j": report.total_j or np.nan, "error_bound_j": report.error_bound_j or np.nan}
            columns = {name: np.array([value]) for name, value in whole.items()}
            parts.append(windows_of(sim, columns, start_ns, run, np.array([family])))
    return Windows.join(parts)


# ---- random windows of random loads


def family_of(load: Script) -> str:
    """Return from which of its families `random_load` drew, which shows in the pieces; fast ones cycle within 25 ms."""
    lengths_s = [length_s for length_s, _ in load.pieces]
    if len(lengths_s) == 1:
        return "constant"
    if len(lengths_s) == 2 and sum(lengths_s) <= 1.0:
        return "fast square" if sum(lengths_s) < FAST_S else "square"
    if len(lengths_s) < 12:
        return "steps"
    if len(set(lengths_s)) == 1:
        return "walk"
    return "fast bursts" if sum(lengths_s) / len(lengths_s) * 3 < FAST_S else "bursts"


def measure_windows(seed: int, runs: int, sensors: Sensors = ALL) -> Windows:
    """Return windows of 20 ms to 4 s at random places in random loads."""
    rng = np.random.default_rng(seed)
    parts = []
    for run in progress(f"random windows, seed {seed}", runs):
        duration_s = float(rng.uniform(8.0, 40.0))
        load = random_load(np.random.default_rng([seed, run]), LOAD_S)
        with measured(rng, load, sensors) as (sim, meter, start_ns):
            while sim.clock.now_ns() < start_ns + duration_s * 1e9:
                sim.advance(float(rng.uniform(0.0, 0.2)))
                with meter.span("window"):
                    sim.advance(float(10 ** rng.uniform(-1.7, 0.6)))
            meter.stop()
            parts.append(compare(sim, meter.report(), start_ns, run, {"window": family_of(load)}))
    return Windows.join(parts)


# ---- marks that follow the load


@dataclass(frozen=True)
class Piece:
    """A stretch of a load, of kind ``kind`` (None: not marked), with its power script."""

    kind: Kind | str | None
    powers: Sequence[tuple[float, float]]

    @property
    def name(self) -> str:
        """What the report calls it."""
        return self.kind.value if isinstance(self.kind, Kind) else self.kind or "run"

    @property
    def length_ns(self) -> int:
        """How long it lasts."""
        return sum(round(length_s * 1e9) for length_s, _ in self.powers)


@dataclass(frozen=True)
class Marked:
    """What the spans of some loads took one by one, and what the report says of each kind of a load as a whole."""

    each: Windows
    sums: Windows


def training(rng: Rng) -> list[Piece]:
    """Return steps like those of a training, 5 to 300 ms each, with waits for data between them, for about 20 s."""
    step_s = float(np.exp(rng.uniform(np.log(0.005), np.log(0.3))))
    wait_s, level_w = step_s * float(rng.uniform(0.05, 0.6)), float(rng.uniform(250.0, 700.0))
    pieces: list[Piece] = []
    for _ in range(int(20.0 / (step_s + wait_s))):
        length_s, overshoot_s = step_s * float(rng.uniform(0.9, 1.1)), min(0.002, step_s / 4)
        work = [(overshoot_s, level_w * 1.1), (length_s - overshoot_s, level_w * float(rng.uniform(0.97, 1.03)))]
        pieces.append(Piece(Kind.DATA_WAIT, [(wait_s * float(rng.uniform(0.5, 2.0)), 125.0)]))
        pieces.append(Piece(Kind.STEP, work))
    return pieces


def two_kinds(rng: Rng, gap_s: float = 0.0) -> list[Piece]:
    """Return two kinds of step in random order, 10 to 40 ms each and of different power, for about 30 s.

    ``gap_s`` of idling that nobody marks follows each.
    """
    powers_w = {"a": float(rng.uniform(150.0, 400.0)), "b": float(rng.uniform(400.0, 700.0))}
    means_s = {kind: float(rng.uniform(0.014, 0.030)) for kind in powers_w}
    spread = float(rng.choice([0.0, 0.05, 0.3]))
    pieces: list[Piece] = []
    for kind in rng.choice(["a", "b"], int(30.0 / sum(means_s.values()) * 2)).tolist():
        length_s = means_s[kind] * float(rng.uniform(1 - spread, 1 + spread))
        pieces.append(Piece(kind, [(length_s, powers_w[kind])]))
        if gap_s:
            pieces.append(Piece(None, [(gap_s, 125.0)]))
    return pieces


def measure_marked(
    what: str, runs: int, seed: int, make: Callable[[Rng], list[Piece]], sensors: Sensors = ALL
) -> Marked:
    """Return what the marks of ``runs`` loads that ``make`` draws took."""
    parts = []
    for run in progress(what, runs):
        rng = np.random.default_rng([seed, run])
        parts.append(play_marked(rng, make(rng), run, sensors))
    return Marked(Windows.join([part.each for part in parts]), Windows.join([part.sums for part in parts]))


def play_marked(rng: Rng, pieces: Sequence[Piece], run: int, sensors: Sensors = ALL) -> Marked:
    """Play ``pieces`` with a span around each."""
    script = Script([part for piece in pieces for part in piece.powers], repeat=False)
    with measured(rng, Constant(125.0), sensors) as (sim, meter, start_ns):
        sim.gpus[0].play(script)
        at_ns = start_ns
        for piece in pieces:
            # Driver calls move virtual time as they would not move a training thread's: the marks keep the load's time.
            if piece.kind is not None:
                meter.begin(piece.kind, at_ns=at_ns)
            at_ns += piece.length_ns
            sim.advance(max(at_ns - sim.clock.now_ns(), 0) * 1e-9)
            if piece.kind is not None:
                meter.end(piece.kind, at_ns=at_ns)
        sim.advance(0.3)
        meter.stop()
        report = meter.report()
        labels = {piece.name: piece.name for piece in pieces if piece.kind is not None}
        steps = {name: report.steps[name] for name in ("start_s", "end_s", "energy_j", "error_bound_j")}
        family = np.full(report.steps.rows, Kind.STEP.value)
        each = Windows.join(
            [compare(sim, report, start_ns, run, labels), windows_of(sim, steps, start_ns, run, family)]
        )
        return Marked(each, _sums(report, each, run))


def _sums(report: Report, each: Windows, run: int) -> Windows:
    totals = {total.kind: total for total in report.kinds}
    names = np.unique(each.family)
    return Windows(
        run=np.full(len(names), run),
        family=names,
        length_s=np.array([totals[name].duration_s for name in names.tolist()]),
        true_j=np.array([each.of(name).true_j.sum() for name in names.tolist()]),
        energy_j=np.array([totals[name].energy_j for name in names.tolist()], float),
        error_bound_j=np.array([totals[name].error_bound_j for name in names.tolist()], float),
    )


# ---- the results


def by_length(windows: Windows, edges_s: Sequence[float]) -> dict[str, dict[str, float]]:
    """Return figures by length of window."""
    return {
        f"{low_s * 1e3:g}-{high_s * 1e3:g} ms": windows.between(low_s, high_s).figures()
        for low_s, high_s in pairwise(edges_s)
    }


def by_family(windows: Windows) -> dict[str, dict[str, float]]:
    """Return figures by family."""
    return {family: windows.of(family).figures() for family in np.unique(windows.family).tolist()}


def show(title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Print figures as a table."""
    print(f"\nSIMULATED  {title}")
    head = ("", "windows", "rms error", "95 % within", "largest", "bound holds", "median bound")
    keys = ("rms", "p95", "max", "coverage", "median_bound")
    lines = [
        (name, f"{row['count']:.0f}", *(f"{row[key]:.2%}" for key in keys))
        for name, row in rows.items()
        if row["count"]
    ]
    print_table([head, *lines])


@dataclass(frozen=True)
class Measured:
    """All that this benchmark measures."""

    totals: Windows
    windows: Windows
    calibration: Windows
    steps: Marked
    kinds: Marked
    gapped: Marked

    @classmethod
    def now(cls) -> Self:
        """Measure it."""
        return cls(
            totals=measure_totals(),
            windows=measure_windows(HELD_OUT_SEED, RUNS),
            calibration=Windows.join([measure_windows(seed, CALIBRATION_RUNS) for seed in CALIBRATION_SEEDS]),
            steps=measure_marked("steps", STEP_RUNS, HELD_OUT_SEED, training),
            kinds=measure_marked("two kinds", KIND_RUNS, HELD_OUT_SEED + 1, two_kinds),
            gapped=measure_marked("two kinds, gaps", KIND_RUNS, HELD_OUT_SEED + 1, partial(two_kinds, gap_s=GAP_S)),
        )

    @property
    def long(self) -> Windows:
        """Random windows of a second and more."""
        return self.windows.between(1.0, np.inf)

    @property
    def short(self) -> Windows:
        """Random windows of about 100 ms."""
        return self.windows.between(0.08, 0.125)

    @property
    def steps_alone(self) -> Windows:
        """The marked steps, without the waits between them."""
        return self.steps.each.of(Kind.STEP.value)

    @property
    def waits(self) -> Windows:
        """The waits between the marked steps."""
        return self.steps.each.of(Kind.DATA_WAIT.value)

    def show(self) -> None:
        """Print tables."""
        show("totals of windows of 1.5-8 s", {"all": self.totals.figures(), **by_family(self.totals)})
        show("random windows of random loads", {"all": self.windows.figures(), **by_family(self.windows)})
        show("the same by length", by_length(self.windows, LENGTHS_S))
        show("random windows on the seeds of the calibration", {"all": self.calibration.figures()})
        show("training-like steps, each", by_length(self.steps_alone, STEPS_S))
        show("the waits between them, each", by_length(self.waits, WAITS_S))
        show("steps and waits, all of a run together", by_family(self.steps.sums))
        show("two kinds of 10-40 ms interleaved, all of a run together", by_family(self.kinds.sums))
        show("the same with 0.5 ms of idling after each", by_family(self.gapped.sums))

    def figures(self) -> dict[str, object]:
        """Return what the result file says."""
        within = int(np.sum(np.abs(self.totals.error) <= 0.01))
        return {
            "totals": {
                **self.totals.figures(),
                "within_1_percent": within / len(self.totals.run),
                "within_1_percent_interval": wilson(within, len(self.totals.run)),
                "by_family": by_family(self.totals),
            },
            "windows": {
                **self.windows.figures(),
                "coverage_interval": self.windows.coverage_interval(),
                "from_1_s": self.long.figures(),
                "about_100_ms": self.short.figures(),
                "by_family": by_family(self.windows),
                "by_length": by_length(self.windows, LENGTHS_S),
                "calibration_seeds": self.calibration.figures(),
            },
            "steps": {
                **self.steps_alone.figures(),
                "by_length": by_length(self.steps_alone, STEPS_S),
                "waits_by_length": by_length(self.waits, WAITS_S),
                "run_sums": by_family(self.steps.sums),
            },
            "two_kinds": {**self.kinds.sums.figures(), "by_kind": by_family(self.kinds.sums)},
            "two_kinds_with_gaps": {**self.gapped.sums.figures(), "by_kind": by_family(self.gapped.sums)},
        }

    def bars(self) -> tuple[Bar, ...]:
        """Return what must be reached."""
        error, holds = np.abs(self.totals.error), self.windows.contained
        return (
            Bar("totals within 1 %", float(np.mean(error <= 0.01)), at_least=0.95),
            Bar("largest error of a total", float(error.max()), at_most=0.02),
            Bar("random windows whose bound holds", float(holds.mean()), at_least=0.95, at_most=0.995),
            Bar("median bound of windows of 1 s and more", float(np.median(self.long.bound)), at_most=0.015),
            Bar("median bound of windows of 80-125 ms", float(np.median(self.short.bound)), at_most=0.10),
            Bar("totals measured", float(len(self.totals.run)), at_least=600, show=".0f"),
            Bar("random windows measured", float(len(self.windows.run)), at_least=2000, show=".0f"),
        )


def main() -> int:
    """Measure, print, write, and return 1 if a bar is missed."""
    found = Measured.now()
    found.show()
    tables = {
        "totals": found.totals,
        "windows": found.windows,
        "step_sums": found.steps.sums,
        "kind_sums": found.kinds.sums,
        "kind_sums_with_gaps": found.gapped.sums,
    }
    raw = {name: windows.table() for name, windows in tables.items()}
    return finish("simulator_accuracy", gpus=[H200.name], figures=found.figures(), bars=found.bars(), raw=raw)


if __name__ == "__main__":
    sys.exit(main())
