"""Replayed: how much energy the search for a power limit saves on trainings that Zeus recorded, and what it costs.

    python benchmarks/zeus_traces.py [FOLDER]       about ten minutes; exits with 1 if a bar is missed

FOLDER, or the environment variable ENERGY_TRACES, holds zeus_power_v100.csv and zeus_power_a40.csv of ml-energy/zeus
(examples/research_reproducibility/zeus_nsdi23/trace); without them it is skipped. Recorded are the time and the power
of 121 trainings under 5 to 9 limits each; limits between them, noise and drift are ours (`benchmarks/_recorded.py`),
and the search knows nothing of them.

Each limit was recorded once, so a part of what differs between limits is no effect of theirs: trainings that draw half
of the lowest limit are up to a sixth slower or faster from one to the next. The optimum counts that as savings, and so
do the bars; the search is asked in so many words to count it, too (``must_bind=False``), and does not promise it. So it
is also told what is reached with limits alone that lower the power: of the same optimum, which is a bar missed, and of
the best such limit. Beside the search stands Zeus's rule: of limits 25 W apart, 40 steps each, the lowest not too slow.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _common import Bar, Kind, Table, finish, print_table, progress
from _recorded import DRIFT, FILES, NOISE_OF_S, SOURCE, STEP_S, TOGETHER, Cell, Replay, recorded_cells
from numpy.typing import NDArray

from energy_plugins.tune import search_power_limit

SEEDS = tuple(range(7001, 7021))
"""Not those that the search was made with, nor those of earlier results."""
BOUNDS = (0.03, 0.05, 0.10)
LITTLE_NOISE, MUCH_NOISE = 0.005, 0.02
SWEEP_STRIDE_W = 25.0
SWEEP_STEPS = 40
_A_RISE = 0.01
"""From one recorded limit to the next; less is hard to tell from the scatter of one recording."""
_ENOUGH = 0.95
"""Share of the optimum that must be reached."""


@dataclass(frozen=True)
class Outcome:
    """What a limit chosen for one training really does to it, and what finding it took."""

    cell: int
    seed: int
    limit_w: float
    saving: float
    slowdown: float
    extra_s: float
    """By how much longer training took while it was searched, than at the highest limit."""
    lost_s: float
    """The same without what was won by limits at which the recorded training was faster."""
    search_s: float
    binding: bool
    expected_saving: float


Found = dict[str, dict[str, dict[str, float]]]
"""Figures by way to choose, bound in per cent and name."""
Choose = Callable[[Replay, float], tuple[float, bool, float]]
"""From a training and a bound to the limit in watts, whether it binds, and the saving that is expected."""


def by_search(replay: Replay, max_slowdown: float) -> tuple[float, bool, float]:
    """Choose by our search, of all limits: also of those that lower no power, but were recorded to cost less."""
    return _searched(replay, max_slowdown, must_bind=False)


def by_search_that_binds(replay: Replay, max_slowdown: float) -> tuple[float, bool, float]:
    """Choose by our search, of limits that lower the drawn power alone."""
    return _searched(replay, max_slowdown, must_bind=True)


def _searched(replay: Replay, max_slowdown: float, *, must_bind: bool) -> tuple[float, bool, float]:
    cell = replay.cell
    found = search_power_limit(
        replay.measure,
        limits_w=(cell.low_w, cell.high_w),
        start_w=cell.high_w,
        max_slowdown=max_slowdown,
        must_bind=must_bind,
    )
    return found.limit_w, found.binding, found.expected_saving


def by_sweep(replay: Replay, max_slowdown: float) -> tuple[float, bool, float]:
    """Choose as Zeus's GlobalPowerLimitOptimizer does with MaxSlowdownConstraint, less its warm-up steps."""
    cell = replay.cell
    limits_w = np.arange(cell.high_w, cell.low_w - 1, -SWEEP_STRIDE_W).tolist()
    times_s = [replay.steps(limit_w, SWEEP_STEPS).step_time_s for limit_w in limits_w]
    kept = [
        limit_w for limit_w, time_s in zip(limits_w, times_s, strict=True) if time_s <= times_s[0] * (1 + max_slowdown)
    ]
    return min(kept), False, 0.0


def outcomes(cells: Sequence[Cell], choose: Choose, max_slowdown: float, noise: float) -> list[Outcome]:
    """Return what is chosen for each training, with each seed."""
    found = []
    for seed in SEEDS:
        for number, cell in enumerate(cells):
            replay = Replay(cell, noise, np.random.default_rng([seed, number]))
            limit_w, binding, expected = choose(replay, max_slowdown)
            saving, slowdown = 1 - cell.energy(limit_w), cell.time(limit_w) - 1
            spent = replay.extra_s, replay.lost_s, replay.now_s
            found.append(Outcome(number, seed, limit_w, saving, slowdown, *spent, binding, expected))
    return found


def column(rows: Sequence[Outcome], name: str) -> NDArray[np.float64]:
    """Return one value of all outcomes."""
    return np.array([getattr(row, name) for row in rows], float)


def figures(cells: Sequence[Cell], rows: Sequence[Outcome], max_slowdown: float) -> dict[str, float]:
    """Return what there is to say of one way to choose, over all trainings and seeds."""
    saving, slowdown = column(rows, "saving"), column(rows, "slowdown")
    binding = [row for row in rows if row.binding]
    best = np.array([cell.optimum(max_slowdown) for cell in cells])
    optimum = float(best.mean())
    by_seed = saving.reshape(len(SEEDS), -1).mean(axis=1) / optimum
    by_cell = saving.reshape(len(SEEDS), -1).mean(axis=0)
    gpus = np.array([cell.name.split()[0] for cell in cells])
    that_binds = float(np.mean([cell.optimum(max_slowdown, binding=True) for cell in cells]))
    return {
        "mean_saving": float(saving.mean()),
        "optimum": optimum,
        "share_of_optimum": float(saving.mean() / optimum),
        **{f"share_of_optimum_{gpu}": float(by_cell[gpus == gpu].sum() / best[gpus == gpu].sum()) for gpu in FILES},
        "share_of_optimum_sd_of_a_seed": float(by_seed.std(ddof=1)),
        "seeds_below_the_bar": int(np.sum(by_seed < _ENOUGH)),
        "optimum_of_limits_that_bind": that_binds,
        "share_of_optimum_of_limits_that_bind": float(saving.mean() / that_binds),
        "least_saving": float(saving.min()),
        "kept_the_bound": float(np.mean(slowdown <= max_slowdown + 0.005)),
        "worst_slowdown": float(slowdown.max()),
        "mean_slowdown": float(slowdown.mean()),
        "extra_s": float(column(rows, "extra_s").sum() / len(SEEDS)),
        "lost_s": float(column(rows, "lost_s").sum() / len(SEEDS)),
        "search_s": float(column(rows, "search_s").sum() / len(SEEDS)),
        "mean_search_s": float(column(rows, "search_s").mean()),
        "longest_search_s": float(column(rows, "search_s").max()),
        "do_not_bind": float(np.mean([not row.binding and row.limit_w < cells[row.cell].high_w for row in rows])),
        "share_of_those_that_do_not_bind": sum(row.saving for row in rows if not row.binding) / len(rows) / optimum,
        "saving_of_those_that_bind": float(sum(row.saving for row in binding) / len(rows)),
        "expected_less_realised": float(np.mean([row.expected_saving - row.saving for row in binding] or [0.0])),
    }


def beside_sweep(found: Found) -> None:
    """Add to the search's figures what it costs over the sweep of Zeus's rule."""
    for key, sweep in found["zeus_rule"].items():
        little = found["search"][key]
        little |= {f"{what}_over_sweep": little[f"{what}_s"] / sweep[f"{what}_s"] for what in ("extra", "lost")}


def safety(name: str, found: dict[str, float], max_slowdown: float) -> list[Bar]:
    """Return the bars of the promise on time."""
    return [
        Bar(f"{name}: within the bound + 0.5 %", found["kept_the_bound"], at_least=0.95),
        Bar(f"{name}: largest slowdown", found["worst_slowdown"], at_most=max_slowdown + 0.03),
        Bar(f"{name}: mean slowdown", found["mean_slowdown"], at_most=max_slowdown),
    ]


def bars(found: Found) -> list[Bar]:
    """Return what the figures must reach."""
    result = []
    for bound in BOUNDS:
        key = f"{bound:.0%}".removesuffix("%")
        little, much, sweep = found["search"][key], found["search_2_percent_noise"][key], found["zeus_rule"][key]
        name = f"at {bound:.0%}"
        bind = found["search_must_bind"][key]["share_of_optimum"]
        result += [
            Bar(f"{name}: share of the optimum", little["share_of_optimum"], at_least=_ENOUGH),
            Bar(f"{name}: the same with limits alone that lower the power", bind, at_least=_ENOUGH),
            *safety(name, little, bound),
            Bar(f"{name}: saved more than by Zeus's rule", little["mean_saving"] - sweep["mean_saving"], at_least=1e-4),
            Bar(f"{name}: least saving", little["least_saving"], at_least=-0.005),
            Bar(f"{name}: extra training time over a sweep's", little["extra_over_sweep"], at_most=1 / 8),
            Bar(f"{name}: the same, nothing won", little["lost_over_sweep"], at_most=1 / 8),
            Bar(f"{name}, noise of 2 %: share of the optimum", much["share_of_optimum"], at_least=0.85),
            *safety(f"{name}, noise of 2 %", much, bound),
            Bar(f"{name}, noise of 2 %: least saving", much["least_saving"], at_least=-0.01),
        ]
    return result


def print_cells(cells: Sequence[Cell], rows: dict[str, dict[str, list[Outcome]]]) -> None:
    """Print what is saved of each training at each bound, and what the search takes."""

    def mean(way: str, key: str, cell: int, name: str) -> float:
        return float(column([row for row in rows[way][key] if row.cell == cell], name).mean())

    for bound in BOUNDS:
        key = f"{bound:.0%}".removesuffix("%")
        print(f"\nat most {bound:.0%} slower; means of {len(SEEDS)} seeds")
        table = [("training", "optimum", "saved", "Zeus's rule", "slower", "search", "extra", "sweep's extra")]
        for number, cell in enumerate(cells):
            table.append(
                (
                    cell.name,
                    f"{cell.optimum(bound):.1%}",
                    f"{mean('search', key, number, 'saving'):.1%}",
                    f"{mean('zeus_rule', key, number, 'saving'):.1%}",
                    f"{mean('search', key, number, 'slowdown'):.1%}",
                    f"{mean('search', key, number, 'search_s'):.0f} s",
                    f"{mean('search', key, number, 'extra_s'):.2f} s",
                    f"{mean('zeus_rule', key, number, 'extra_s'):.2f} s",
                )
            )
        print_table(table)


def table_of(rows: Sequence[Outcome]) -> Table:
    """Return outcomes as columns: for each seed, all trainings in their order."""
    names = ("limit_w", "saving", "slowdown", "search_s")
    return {name: [getattr(row, name) for row in rows] for name in names} | {
        "binding": [int(row.binding) for row in rows]
    }


def main() -> int:
    """Replay, print, write, and return 1 if a bar is missed."""
    named = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("ENERGY_TRACES")
    if named is None:
        print("zeus_traces: skipped, pass the folder of the recorded traces, or name it in ENERGY_TRACES")
        return 0
    folder = Path(named)
    missing = [file for file in FILES.values() if not (folder / file).exists()]
    if missing:
        print(f"zeus_traces: skipped, there is no {' and no '.join(missing)} in {folder}")
        return 0
    cells = recorded_cells(folder)
    ways: dict[str, tuple[Choose, float]] = {
        "search": (by_search, LITTLE_NOISE),
        "search_2_percent_noise": (by_search, MUCH_NOISE),
        "search_must_bind": (by_search_that_binds, LITTLE_NOISE),
        "zeus_rule": (by_sweep, LITTLE_NOISE),
    }
    rows: dict[str, dict[str, list[Outcome]]] = {way: {} for way in ways}
    runs = [(way, bound) for way in ways for bound in BOUNDS]
    for number in progress("bounds", len(runs)):
        way, bound = runs[number]
        rows[way][f"{bound:.0%}".removesuffix("%")] = outcomes(cells, ways[way][0], bound, ways[way][1])
    print_cells(cells, rows)
    found = {
        way: {key: figures(cells, some, int(key) / 100) for key, some in by_bound.items()}
        for way, by_bound in rows.items()
    }
    beside_sweep(found)
    told = {
        "replay": {
            "source": SOURCE,
            "trainings": len(cells),
            "time_rises_with_the_limit": sum(cell.rise > 0 for cell in cells),
            "time_rises_by_more_than_a_per_cent": sum(cell.rise > _A_RISE for cell in cells),
            "largest_rise": max(cell.rise for cell in cells),
            "seeds": SEEDS,
            "step_s": STEP_S,
            "noise_of_a_window": {"little": LITTLE_NOISE, "much": MUCH_NOISE, "of_s": NOISE_OF_S},
            "correlation_of_time_and_energy": TOGETHER,
            "drift_per_600_s": DRIFT * 600,
            "sweep": {"stride_w": SWEEP_STRIDE_W, "steps": SWEEP_STEPS},
            "cells": [cell.name for cell in cells],
        },
        **found,
    }
    raw = {f"{way}_{key}": table_of(some) for way, by_bound in rows.items() for key, some in by_bound.items()}
    gpus = ["V100 and A40 as recorded by Zeus, with added noise"]
    return finish("zeus_traces", gpus=gpus, figures=told, bars=bars(found), raw=raw, kind=Kind.REPLAYED)


if __name__ == "__main__":
    sys.exit(main())
