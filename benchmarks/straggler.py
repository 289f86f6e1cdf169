"""SIMULATED: what is saved by limiting the ranks that wait for a slow one, against the best that could be.

    python benchmarks/straggler.py        some ten seconds; exits with 1 if a bar is missed

Four ranks train together, one of them slower than the others, which spin while they wait for it. How long the work of a
step takes under a limit, and what it draws, is the simulated H200's; how slow the slow one is, and what waiting draws,
are the nine cells. One limit for the three that wait is searched from windows of all ranks, noisy and drifting by
the same law as those of recorded trainings (`benchmarks/_recorded.py`); the best is known from the formula without
noise. The search keeps its bound in nineteen of twenty cases, but here every search of every cell must stay within what
is allowed and save enough: so it is asked for less.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pynvml
from _common import Bar, Table, finish, print_table
from _recorded import STEP_S, Observer
from numpy.typing import NDArray

from energy_plugins.testing import Simulation, simulated_gpus
from energy_plugins.tune import Measurement, of_all_ranks, search_power_limit

SEEDS = tuple(range(7001, 7021))
"""Not those that the search was made with, nor those of earlier results."""
SLOWER = (1.10, 1.20, 1.40)
WAITING = (0.3, 0.5, 0.7)
RANKS = 4
ALLOWED = 0.01
"""By how much longer a step may really take."""
ENOUGH = 0.9
"""Share of the best that must be saved."""
ASKED = 0.004
"""What is asked of the search, which keeps it to within half of it in nineteen of twenty searches."""
NOISE = 0.005
"""Of the time and the energy of a window of 5 s, for each rank."""
_WORK = {"ops": 8e12, "bytes": 5e9}
_GPU = "NVIDIA H200 (SIMULATED)"


@dataclass(frozen=True)
class Work:
    """The work of a step under each limit in whole watts: its time as a share of that at the highest, and its power."""

    limits_w: NDArray[np.float64]
    times: NDArray[np.float64]
    powers_w: NDArray[np.float64]

    def time(self, limit_w: float) -> float:
        """Return its time under a limit."""
        return float(np.interp(limit_w, self.limits_w, self.times))

    def power_w(self, limit_w: float) -> float:
        """Return its power under a limit."""
        return float(np.interp(limit_w, self.limits_w, self.powers_w))


def work_of(simulation: Simulation) -> Work:
    """Run the work on the simulated GPU under each limit it allows."""
    pynvml.nvmlInit()
    gpu, handle = simulation.gpus[0], pynvml.nvmlDeviceGetHandleByIndex(0)
    low_mw, high_mw = pynvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)
    limits_w, seconds, powers_w = [], [], []
    for limit_mw in range(low_mw, high_mw + 1, 1000):
        pynvml.nvmlDeviceSetPowerManagementLimit(handle, limit_mw)
        start_ns = simulation.clock.now_ns()
        gpu.launch(**_WORK, wait=True)
        end_ns = simulation.clock.now_ns()
        limits_w.append(limit_mw / 1e3)
        seconds.append((end_ns - start_ns) * 1e-9)
        powers_w.append(gpu.true_energy_j(start_ns, end_ns) / seconds[-1])
    return Work(np.array(limits_w), np.array(seconds) / seconds[-1], np.array(powers_w))


@dataclass(frozen=True)
class Cell:
    """A training whose last rank is slower than the others."""

    work: Work
    slower: float
    waiting: float
    """What waiting draws, as a share of what work draws without a limit."""

    @property
    def high_w(self) -> float:
        """The highest limit, under which it is found."""
        return float(self.work.limits_w[-1])

    def step(self, limit_w: float) -> float:
        """Return a step's time with the others under a limit, in seconds."""
        return STEP_S * max(self.slower, self.work.time(limit_w))

    def energies_j(self, limit_w: float) -> list[float]:
        """Return each rank's joules of a step."""
        own_s, step_s = STEP_S * self.work.time(limit_w), self.step(limit_w)
        free_w = self.work.power_w(self.high_w)
        waiting_w = min(self.waiting * free_w, limit_w)
        slow_s = STEP_S * self.slower
        slow_j = slow_s * free_w + (step_s - slow_s) * self.waiting * free_w
        return [own_s * self.work.power_w(limit_w) + (step_s - own_s) * waiting_w] * (RANKS - 1) + [slow_j]

    def saving(self, limit_w: float) -> float:
        """Return the share of all ranks' energy that a limit saves."""
        return 1 - sum(self.energies_j(limit_w)) / sum(self.energies_j(self.high_w))

    def slowdown(self, limit_w: float) -> float:
        """Return by which share a limit makes steps longer."""
        return self.step(limit_w) / self.step(self.high_w) - 1

    def best(self) -> float:
        """Return the largest share that a limit in whole watts saves."""
        allowed = [limit_w for limit_w in self.work.limits_w.tolist() if self.slowdown(limit_w) <= ALLOWED]
        return max(self.saving(limit_w) for limit_w in allowed)


class Replay:
    """Such a training while limits are tried."""

    def __init__(self, cell: Cell, rng: np.random.Generator) -> None:
        self._cell = cell
        self._observer = Observer(NOISE, rng)

    @property
    def now_s(self) -> float:
        """How long it has gone on."""
        return self._observer.now_s

    def measure(self, limit_w: float, seconds: float) -> Measurement:
        """Train for so long with the others under a limit."""
        step_s = self._cell.step(limit_w)
        count = max(round(seconds / step_s), 1)
        ranks = self._observer.window(step_s, self._cell.energies_j(limit_w), count)
        return of_all_ranks(ranks, limited=range(RANKS - 1))


@dataclass(frozen=True)
class Outcome:
    """What one search chose for a cell, and what that does."""

    slower: float
    waiting: float
    seed: int
    limit_w: float
    saving: float
    share: float
    slowdown: float
    search_s: float


def outcome(cell: Cell, seed: int) -> Outcome:
    """Search, and return what is really saved by what was chosen."""
    replay = Replay(cell, np.random.default_rng([seed, round(100 * cell.slower), round(100 * cell.waiting)]))
    limits_w = float(cell.work.limits_w[0]), cell.high_w
    limit_w = search_power_limit(replay.measure, limits_w=limits_w, start_w=cell.high_w, max_slowdown=ASKED).limit_w
    saving = cell.saving(limit_w)
    return Outcome(
        cell.slower, cell.waiting, seed, limit_w, saving, saving / cell.best(), cell.slowdown(limit_w), replay.now_s
    )


def table_of(rows: Sequence[Outcome]) -> Table:
    """Return outcomes as columns."""
    return {name: [getattr(row, name) for row in rows] for name in Outcome.__dataclass_fields__}


def main() -> int:
    """Search, print, write, and return 1 if a bar is missed."""
    with simulated_gpus(virtual=True) as simulation:
        work = work_of(simulation)
    cells = [Cell(work, slower, waiting) for slower in SLOWER for waiting in WAITING]
    rows, bars, figures = [], [], {}
    table = [
        ("one rank slower by; waiting draws", "best", "saved", "share, worst", "slowdown, worst", "limit", "search")
    ]
    for cell in cells:
        found = [outcome(cell, seed) for seed in SEEDS]
        rows += found
        share, worst = float(np.mean([one.share for one in found])), min(one.share for one in found)
        slowdown, name = max(one.slowdown for one in found), f"{cell.slower:.2f}x; {cell.waiting:.0%}"
        bars += [
            Bar(f"{name}: share of the best, mean", share, at_least=ENOUGH),
            Bar(f"{name}: share of the best, worst search", worst, at_least=ENOUGH),
            Bar(f"{name}: slowdown, worst search", slowdown, at_most=ALLOWED),
        ]
        figures[name] = {"best": cell.best(), "share": share, "worst_share": worst, "worst_slowdown": slowdown}
        limit_w, search_s = (float(np.mean([getattr(one, key) for one in found])) for key in ("limit_w", "search_s"))
        saving = f"{share * cell.best():.1%}"
        table.append(
            (
                name,
                f"{cell.best():.1%}",
                saving,
                f"{worst:.1%}",
                f"{slowdown:.2%}",
                f"{limit_w:.0f} W",
                f"{search_s:.0f} s",
            )
        )
    print_table(table)
    overall = {
        "least_share": min(one["share"] for one in figures.values()),
        "worst_share": min(one["worst_share"] for one in figures.values()),
        "searches": len(rows),
        "saved_too_little": sum(one.share < ENOUGH for one in rows),
        "too_slow": sum(one.slowdown > ALLOWED for one in rows),
        "least_best": min(one["best"] for one in figures.values()),
        "most_best": max(one["best"] for one in figures.values()),
        "worst_slowdown": max(one["worst_slowdown"] for one in figures.values()),
    }
    told = {"cells": figures, **overall, "ranks": RANKS, "seeds": SEEDS, "asked_slowdown": ASKED}
    return finish("straggler", gpus=[_GPU], figures=told, bars=bars, raw={"searches": table_of(rows)})


if __name__ == "__main__":
    sys.exit(main())
