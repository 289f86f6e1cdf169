"""A day of training in virtual time with random faults all along: nothing grows, nothing is lost, nothing is wrong."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from faulty import quietly, shut_down, truth_j
from measuring import COUNTER, SAMPLES

from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.measure.report import Report
from energy_plugins.measure.spans import Kind
from energy_plugins.testing import (
    CounterJump,
    CounterReset,
    Fault,
    GpuLost,
    Hang,
    NoCounter,
    NoPermission,
    NoSampleBuffer,
    Script,
    SimulatedDevice,
    Simulation,
    WallClockStep,
    simulated_gpus,
)

HOURS = 24
GPUS = 2
LIVE_FROM_HOUR = 18.0
"""Live figures cost more than all the rest."""
FAULT_EVERY_S = 400.0
RESET_EVERY_S = 2400.0
CLOCK_EVERY_S = 3000.0


def some_load(rng: random.Random) -> Script:
    """Return two hours of random levels, over and over."""
    pieces: list[tuple[float, float]] = []
    while sum(length_s for length_s, _ in pieces) < 7200:
        pieces.append((rng.choice([0.2, 1.0, 5.0, 60.0]) * rng.uniform(0.5, 2.0), rng.uniform(100.0, 700.0)))
    return Script(pieces)


def some_fault(rng: random.Random) -> Fault:
    """Return one that passes: of seconds mostly, of minutes at times."""
    lasts_s = 10 ** rng.uniform(0.0, 2.3)
    call = rng.choice([SAMPLES, COUNTER])
    faults: list[Fault] = [
        GpuLost(back_s=lasts_s),
        NoSampleBuffer(back_s=lasts_s),
        NoCounter(back_s=lasts_s),
        NoPermission(call, back_s=lasts_s),
        Hang(call, rng.uniform(0.05, 8.0), back_s=min(lasts_s, 10.0)),
    ]
    return rng.choice(faults)


@dataclass
class Weather:
    """What goes wrong when."""

    simulation: Simulation
    rng: random.Random

    def begin(self) -> None:
        """Plan the first of each kind."""
        self._next_s = {kind: self._in(every_s) for kind, (every_s, _) in self._kinds.items()}

    def pass_by(self) -> None:
        """Let happen what is due; one kind at a time, so that what is lost can be told apart."""
        for kind, (every_s, happen) in self._kinds.items():
            if self._now_s() >= self._next_s[kind]:
                self._next_s[kind] = self._in(every_s)
                happen(self.rng.choice(self.simulation.gpus))

    @property
    def _kinds(self) -> dict[str, tuple[float, Callable[[SimulatedDevice], None]]]:
        return {
            "passing": (FAULT_EVERY_S, lambda gpu: gpu.inject(some_fault(self.rng))),
            "counter": (RESET_EVERY_S, self._upset_counter),
            "clock": (CLOCK_EVERY_S, self._upset_clock),
            "shutdown": (RESET_EVERY_S, lambda _: shut_down()),
        }

    def _upset_counter(self, gpu: SimulatedDevice) -> None:
        gpu.inject(CounterReset() if self.rng.random() < 0.5 else CounterJump(1e7))

    def _upset_clock(self, gpu: SimulatedDevice) -> None:
        seconds = 10 ** self.rng.uniform(-1.0, 4.0)
        if self.rng.random() < 0.3:
            self.simulation.suspend(seconds, self.rng.uniform(0.0, 80.0))
        else:
            gpu.inject(WallClockStep(self.rng.choice([-1, 1]) * seconds))

    def _now_s(self) -> float:
        return self.simulation.clock.now_ns() * 1e-9

    def _in(self, every_s: float) -> float:
        return self._now_s() + every_s * self.rng.uniform(0.5, 1.5)


def train(simulation: Simulation, meter: EnergyMeter, rng: random.Random, end_ns: int) -> Iterator[float]:
    """Train until ``end_ns``, and yield the hour after each step."""
    start_ns = simulation.clock.now_ns()
    while simulation.clock.now_ns() < end_ns:
        with meter.span(Kind.DATA_WAIT):
            simulation.advance(rng.uniform(0.0, 0.4))
        with meter.step(samples=8), meter.span(Kind.FORWARD):
            simulation.advance(rng.uniform(0.5, 6.0))
        if rng.random() < 0.002:
            with meter.span(Kind.VALIDATE):
                simulation.advance(60.0)
        yield (simulation.clock.now_ns() - start_ns) / 3.6e12


@dataclass(frozen=True)
class Size:
    """How much there is of this process."""

    rss_bytes: int
    objects: int

    @classmethod
    def now(cls) -> Size:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(pages * os.sysconf("SC_PAGESIZE"), len(gc.get_objects()))


@dataclass(frozen=True)
class Day:
    """What came of it."""

    report: Report
    true_j: float
    lost_j: float
    """What was drawn while neither samples nor counter could tell, as the meter has it."""
    lost_s: float
    step_j: np.ndarray[tuple[int], np.dtype[np.float64]]
    sizes: list[Size]


def live_through(seed: int, folder: Path) -> Day:
    rng = random.Random(seed)
    loads = [some_load(rng) for _ in range(GPUS)]
    sizes = []
    with quietly(), simulated_gpus(loads, virtual=True, start_s=10, seed=seed) as simulation:
        weather = Weather(simulation, rng)
        with EnergyMeter(folder=folder) as meter:
            start_ns, quarters = simulation.clock.now_ns(), 1
            assert meter.run is not None
            tracks = meter.run._collector.settlement.tracks
            weather.begin()
            for hour in train(simulation, meter, rng, start_ns + HOURS * 3600 * 10**9):
                weather.pass_by()
                if hour > LIVE_FROM_HOUR:
                    meter.latest()
                if hour >= quarters * HOURS / 8:
                    sizes.append(Size.now())
                    quarters += 1
            end_ns = simulation.clock.now_ns()
        report = meter.report()
        bounds = np.rint(np.stack([report.steps["start_s"], report.steps["end_s"]], axis=1) * 1e9).astype(np.int64)
        lost = [
            (gpu, *one)
            for gpu, track in zip(simulation.gpus, tracks, strict=True)
            for one in [*track.ledger.lost, *track.ledger.given]
        ]
        return Day(
            report=report,
            true_j=truth_j(simulation, start_ns, end_ns),
            lost_j=sum(gpu.true_energy_j(since_ns, until_ns) for gpu, since_ns, until_ns in lost),
            lost_s=sum(until_ns - since_ns for _, since_ns, until_ns in lost) * 1e-9,
            step_j=np.array([truth_j(simulation, start_ns + a, start_ns + b) for a, b in bounds.tolist()]),
            sizes=sizes,
        )


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Day:
    return live_through(2026, tmp_path_factory.mktemp("soak") / "run")


pytestmark = pytest.mark.soak


def test_nothing_grows_in_the_second_half(day: Day) -> None:
    half, *_, last = day.sizes[3:]
    assert last.rss_bytes - half.rss_bytes < 3_000_000, day.sizes
    assert last.objects - half.objects < 500, day.sizes


def test_no_joule_that_was_covered_is_lost_and_none_is_invented(day: Day) -> None:
    report = day.report
    assert report.total_j is not None
    assert report.error_bound_j is not None
    assert abs(report.total_j - (day.true_j - day.lost_j)) <= report.error_bound_j < 0.02 * day.true_j
    assert day.lost_s < 0.02 * GPUS * report.duration_s  # resets and sleeps in a silence, and little else
    assert 0.8 < report.coverage < 0.99


def test_steps_and_the_rest_are_the_total(day: Day) -> None:
    report = day.report
    kinds = {kind.kind: kind.energy_j or 0.0 for kind in report.kinds}
    assert sum(kinds.values()) == pytest.approx(report.total_j, rel=1e-9)
    assert sum(joules or 0.0 for joules in report.gpu_j.values()) == pytest.approx(report.total_j, rel=1e-9)
    assert {phase.kind: phase.energy_j for phase in report.phases}["run"] == pytest.approx(report.total_j, rel=1e-9)
    assert report.steps.rows == report.work.steps == report.steps["index"][-1] + 1
    assert report.work.samples == 8 * report.work.steps


def test_every_step_that_was_covered_is_within_its_bound(day: Day) -> None:
    energy_j, coverage, bound_j = (day.report.steps[name] for name in ("energy_j", "coverage", "error_bound_j"))
    assert (np.isnan(energy_j) == (coverage == 0)).all()
    covered = coverage > 1 - 1e-9
    assert covered.mean() > 0.7
    assert (np.abs(energy_j - day.step_j) <= bound_j)[covered].mean() >= 0.95
    assert (np.abs(energy_j - day.step_j) <= 3 * bound_j)[covered].all()


def test_what_went_wrong_is_a_page_and_no_more(day: Day) -> None:
    assert 5 < len(day.report.warnings) < 30, day.report.warnings
    assert len(str(day.report)) < 12_000


def test_the_folder_holds_the_same_report(day: Day, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = Path(tmp_path_factory.getbasetemp()) / "soak0" / "run"
    assert Report.load(folder) == day.report
