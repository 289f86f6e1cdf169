"""Replayed: how much energy the search for a micro-batch saves on curves recorded on an H200, and what it costs.

    python benchmarks/micro_batch_curves.py [FILE]      some minutes; exits with 1 if a bar is missed

FILE is the table of recorded curves, `benchmarks/recorded/h200_micro_batches.csv` unless named; without it the
benchmark is skipped. Recorded are the energy and the time of a sample at 8 or 9 sizes of four models, where every
micro-batch paid an optimizer step. With accumulation only both ends were recorded: curves between these have the shape
of the others, and are named "accumulated". One curve is modelled, and says so: none that was recorded rises with the
size. Noise and drift are ours (`benchmarks/_recorded.py`), and the search knows nothing of them.

The exhaustive best is the least energy of all recorded sizes that make up the same effective batch, known exactly.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _common import Bar, Kind, Table, finish, print_table, progress
from _micro_batch_curves import ENDS, RECORDED, SOURCE, SPILL, Cell, Curve, SizeReplay, recorded_curves
from _recorded import DRIFT, NOISE_OF_S, TOGETHER

from energy_plugins.tune import FixedCost, MicroBatchChoice, MicroBatchTask, effective_batch_outlook, rule_of
from energy_plugins.tune.micro_batch.fixed_cost import SizeCost
from energy_plugins.tune.micro_batch.search import Done, begin, step
from energy_plugins.tune.micro_batch.sizes import possible

SEEDS = tuple(range(11001, 11021))
"""Not those that the search was made with, nor those of earlier results."""
LEVELS = {"little": (0.005, 0.0), "much": (0.02, 0.0), "late": (0.005, 3.0)}
"""Noise, and what each window takes beside its steps (s): a plugin changes the size, and waits for late figures."""
MUCH_TO_SAVE = 0.05
"""Where less can be saved, a share of it says little: there what is left counts."""
MOST_S = 60.0
BOARD_W = 700.0
CELLS = (
    Cell("ResNet-50 accumulated", 8, 32),
    Cell("ResNet-50 GroupNorm accumulated", 8, 32),
    Cell("GPT-2 accumulated", 4, 16),
    Cell("ResNet-50", 8, 32),
    Cell("ResNet-50", 4, 64),
    Cell("ResNet-50", 32, 8),
    Cell("ResNet-50", 64, 4),
    Cell("ResNet-50", 256, 1),
    Cell("ResNet-50", 8, 128),
    Cell("ResNet-50", 8, 128, gib=16),
    Cell("ResNet-50", 1024, 1, gib=16),
    Cell("GPT-2", 4, 16),
    Cell("GPT-2", 1, 64),
    Cell("GPT-2", 8, 8),
    Cell("GPT-2", 32, 2),
    Cell("GPT-2", 64, 1),
    Cell("MLP 1024", 512, 128),
    Cell("MLP 1024", 8192, 8),
    Cell("MLP 4096", 256, 256),
    Cell("MLP 4096", 65536, 1),
    Cell(SPILL, 8192, 1),
    Cell(SPILL, 1024, 8),
)


@dataclass(frozen=True)
class Outcome:
    """What a size chosen for one training really does to it, and what finding it took."""

    cell: int
    seed: int
    size: int
    saving: float
    best: float
    """What the best size saves."""
    left: float
    """By how much more the chosen size costs than the best."""
    search_s: float
    confidence: float
    expected_saving: float


def searched(replay: SizeReplay) -> MicroBatchChoice:
    """Return what the search chooses, driven as a training's hook drives it."""
    state, action = begin(MicroBatchTask.of(replay.cell.batch, replay.cell.accumulation))
    while True:
        began_s = replay.now_s
        outcome = replay.measure(action.size, action.seconds)
        state, following = step(state, outcome, replay.now_s - began_s)
        if isinstance(following, Done):
            return following.choice
        action = following


def outcomes(curves: Mapping[str, Curve], noise: float, beside_s: float) -> list[Outcome]:
    """Return what is chosen for each training, with each seed."""
    found = []
    for number in progress("trainings", len(CELLS)):
        cell = CELLS[number]
        curve = curves[cell.curve]
        sizes = set(possible(cell.batch, cell.accumulation)) & set(curve)
        for seed in SEEDS:
            replay = SizeReplay(cell, curve, noise, np.random.default_rng([seed, number]), beside_s)
            choice = searched(replay)
            best_j, start_j = replay.best_j(sizes), replay.start_j(choice.size)
            found.append(
                Outcome(
                    cell=number,
                    seed=seed,
                    size=choice.size,
                    saving=replay.saving(choice.size),
                    best=1 - best_j / start_j,
                    left=curve[choice.size].sample_j / best_j - 1,
                    search_s=replay.now_s,
                    confidence=choice.confidence,
                    expected_saving=choice.expected_saving,
                )
            )
    return found


def of_cell(rows: Sequence[Outcome], cell: int) -> dict[str, float]:
    """Return what there is to say of one training."""
    own = [row for row in rows if row.cell == cell]
    best = float(np.mean([row.best for row in own]))
    saving = [row.saving for row in own]
    return {
        "best": best,
        "mean_saving": float(np.mean(saving)),
        "least_saving": float(np.min(saving)),
        "share_of_best": float(np.mean(saving)) / best if best >= MUCH_TO_SAVE else math.nan,
        "worst_share_of_a_search": float(np.min(saving)) / best if best >= MUCH_TO_SAVE else math.nan,
        "mean_left": float(np.mean([row.left for row in own])),
        "mean_search_s": float(np.mean([row.search_s for row in own])),
        "longest_search_s": float(np.max([row.search_s for row in own])),
        "expected_less_realised": float(np.mean([row.expected_saving - row.saving for row in own])),
        "mean_confidence": float(np.mean([row.confidence for row in own])),
    }


def summary(cells: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return what there is to say of all trainings."""
    shares = [cell["share_of_best"] for cell in cells if not math.isnan(cell["share_of_best"])]
    return {
        "cells_with_much_to_save": float(len(shares)),
        "least_share_of_best": min(shares),
        "mean_share_of_best": float(np.mean(shares)),
        "worst_share_of_a_search": min(
            cell["worst_share_of_a_search"] for cell in cells if not math.isnan(cell["share_of_best"])
        ),
        "most_left_where_little": max(cell["mean_left"] for cell in cells if math.isnan(cell["share_of_best"])),
        "least_saving": min(cell["least_saving"] for cell in cells),
        "mean_search_s": float(np.mean([cell["mean_search_s"] for cell in cells])),
        "longest_search_s": max(cell["longest_search_s"] for cell in cells),
    }


def print_cells(level: str, cells: Sequence[Mapping[str, float]], rows: Sequence[Outcome]) -> None:
    """Print what is saved of each training."""
    noise, beside_s = LEVELS[level]
    print(f"\nnoise of {noise:.1%}, {beside_s:.0f} s beside each window; means of {len(SEEDS)} seeds")
    table = [("training", "best", "saved", "share", "least", "search", "longest", "sizes chosen")]
    for number, (cell, found) in enumerate(zip(CELLS, cells, strict=True)):
        share = found["share_of_best"]
        sizes = sorted({row.size for row in rows if row.cell == number})
        table.append(
            (
                cell.name,
                f"{found['best']:.1%}",
                f"{found['mean_saving']:.1%}",
                "-" if math.isnan(share) else f"{share:.1%}",
                f"{found['least_saving']:.1%}",
                f"{found['mean_search_s']:.0f} s",
                f"{found['longest_search_s']:.0f} s",
                " ".join(map(str, sizes)),
            )
        )
    print_table(table)


def outlooks(curves: Mapping[str, Curve]) -> list[dict[str, float | str]]:
    """Return what is said of growing a step of one small batch, from its split sizes alone, beside what was recorded.

    Without noise: two or three sizes make the curve, and what lies beyond them is what is asked.
    """
    found: list[dict[str, float | str]] = []
    for name, batch in (("ResNet-50", 8), ("GPT-2", 4), ("MLP 1024", 1024), ("MLP 4096", 1024)):
        curve = curves[name]
        costs = [
            SizeCost(size, size * curve[size].sample_s, size * curve[size].sample_j)
            for size in possible(batch, 1)
            if size in curve
        ]
        fitted = FixedCost.fit(costs)
        if fitted is None:
            continue
        outlook = effective_batch_outlook(
            fitted, share=batch, micro_batch=batch, rule=rule_of("linear"), fits=max(curve), most_w=BOARD_W
        )
        for grown in outlook.grown:
            if grown.micro_batch in curve:
                recorded = 1 - curve[grown.micro_batch].sample_j / curve[batch].sample_j
                found.append(
                    {
                        "training": f"{name}, {batch} x 1",
                        "effective_batch": grown.effective_batch,
                        "told": grown.saving,
                        "recorded": recorded,
                    }
                )
    return found


def main() -> int:
    """Replay, print, write, and return 1 if a bar is missed."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else RECORDED
    if not path.exists():
        print(f"micro_batch_curves: skipped, there is no {path}")
        return 0
    curves = recorded_curves(path)
    rows = {level: outcomes(curves, noise, beside_s) for level, (noise, beside_s) in LEVELS.items()}
    cells = {level: [of_cell(some, number) for number in range(len(CELLS))] for level, some in rows.items()}
    for level in LEVELS:
        print_cells(level, cells[level], rows[level])
    all_of = {level: summary(some) for level, some in cells.items()}
    grown = outlooks(curves)
    print("\nsteps of one small batch: what growing the effective batch is said to save, and what was recorded")
    print_table(
        [("training", "grown to", "told", "recorded")]
        + [
            (str(row["training"]), str(row["effective_batch"]), f"{row['told']:.1%}", f"{row['recorded']:.1%}")
            for row in grown
        ]
    )
    little, much, late = (all_of[level] for level in LEVELS)
    apart = [float(row["told"]) - float(row["recorded"]) for row in grown]
    bars = [
        Bar("share of the exhaustive best's saving, least of all trainings", little["least_share_of_best"], 0.95),
        Bar("more than the best costs, where little can be saved, at most", little["most_left_where_little"], 0, 0.01),
        Bar("least saving of any search", little["least_saving"], at_least=-0.005),
        Bar("longest search (s)", little["longest_search_s"], at_most=MOST_S, show=".0f"),
        Bar("noise of 2 %: share of the best's saving, least of all trainings", much["least_share_of_best"], 0.85),
        Bar("noise of 2 %: least saving of any search", much["least_saving"], at_least=-0.01),
        Bar("noise of 2 %: longest search (s)", much["longest_search_s"], at_most=MOST_S, show=".0f"),
        Bar("3 s beside each window: share of the best's saving, least", late["least_share_of_best"], at_least=0.95),
        Bar("3 s beside each window: longest search (s)", late["longest_search_s"], at_most=MOST_S, show=".0f"),
        Bar("growing the effective batch: told beyond what was recorded, at most", max(apart), at_most=0.10),
    ]
    told = {
        "replay": {
            "source": SOURCE,
            "accumulated": [vars(ends) for ends in ENDS],
            "seeds": SEEDS,
            "searches": len(SEEDS) * len(CELLS),
            "trainings": len(CELLS),
            "noise_of_a_window": {level: noise for level, (noise, _) in LEVELS.items()} | {"of_s": NOISE_OF_S},
            "beside_each_window_s": {level: beside_s for level, (_, beside_s) in LEVELS.items()},
            "correlation_of_time_and_energy": TOGETHER,
            "drift_per_600_s": DRIFT * 600,
        },
        "all": all_of,
        "cells": {
            level: [{"name": cell.name, **found} for cell, found in zip(CELLS, some, strict=True)]
            for level, some in cells.items()
        },
        "effective_batch": {"rows": grown, "most_beyond": max(apart), "most_short": -min(apart)},
    }
    raw: dict[str, Table] = {
        level: {
            name: [getattr(row, name) for row in some]
            for name in ("cell", "seed", "size", "saving", "search_s", "expected_saving")
        }
        for level, some in rows.items()
    }
    gpus = ["NVIDIA H200 as recorded, with added noise; one modelled curve"]
    return finish("micro_batch_curves", gpus=gpus, figures=told, bars=bars, raw=raw, kind=Kind.REPLAYED)


if __name__ == "__main__":
    sys.exit(main())
