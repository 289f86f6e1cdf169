"""Replayed: what a sweep over batch size and power limit spends on trainings that Zeus recorded, and what it finds.

    python benchmarks/sweep_traces.py [FOLDER]       about five minutes; exits with 1 if a bar is missed

FOLDER, or the environment variable ENERGY_TRACES, holds zeus_power_v100.csv, zeus_power_a40.csv and zeus_train.csv of
ml-energy/zeus (examples/research_reproducibility/zeus_nsdi23/trace); without them it is skipped. There are 12 cells: 6
workloads with the defaults and targets of Zeus's paper, on two GPUs. Energy to a target is epochs to the target (the
mean of the seeds that reached it) times the time of an epoch times its power.

Both sides have the same objective, trial cap and first trial: the default batch at the highest limit. A training draws
one of the recorded seeds, and shows an epoch's metric when it has been trained for that epoch. A run that never reaches
the target ends after as many epochs as any of that workload needed at most. What is spent counts in full: pruned
trials, windows under other power limits. Noise of windows is ours; starting a training costs nothing on either side.

*Optuna*: TPE with its median pruner, each trial a size and a limit; a configuration counts as found as soon as one
trial that reached its target had it. *Ours*: `energy_plugins.tune.sweep.energy_to_target`; found only when it is the
best of the sweep. Who never finds one is charged the cap: what Optuna spends on all its trials, in mean.

Nothing is fitted to the workload it is tested on. The drift of epochs and of joules with the batch size is fitted to
the five other workloads, and the least gain that is worth a training is the one of `LEAST_GAINS` that is best on them,
by other seeds (and there, too, with the drift of workloads other than those two). The margin of the search for limits
and the rungs' shares were fixed before the first replay. The logic of the search was not: that it walks on past the
limit at the edge, reckons with seeds that differ, and passes over metrics that are missing was added after replays of
these same cells with other seeds.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from _common import Bar, Kind, Table, finish, print_table, progress, say
from _recorded import FILES, SOURCE
from _recorded_sweeps import EPOCHS_FILE, WORKLOADS, SweepCell, sweep_cells
from _replayed_sweeps import (
    HALVINGS,
    MEDIAN,
    MOST_TRIALS,
    MOST_TRIALS_BY_ENERGY,
    PRUNERS,
    WINDOW_NOISE,
    WINDOW_S,
    WITHIN,
    Swept,
    by_search,
    by_tpe,
    walks_of,
)

SEEDS = tuple(range(8001, 8041))
CHOICE_SEEDS = tuple(range(1, 11))
"""By which the least gain is chosen."""
HALVING_SEEDS = SEEDS[:20]
LEAST_GAINS = (0.02, 0.01, 0.005, 0.002)
OURS = "ours"

BySweep = dict[str, dict[str, list[Swept]]]
"""Sweeps by way to do them, and by cell."""


def chosen_gains(cells: Sequence[SweepCell]) -> dict[str, float]:
    """Return the least gain for each workload, by dataset: the best one on all others."""
    median = {cell.name: [by_tpe(cell, seed, PRUNERS[MEDIAN]) for seed in CHOICE_SEEDS] for cell in cells}
    cap_j = {name: fmean(swept.spent_j for swept in some) for name, some in median.items()}

    def share_of_cap(cell: SweepCell, left_out: str, least_gain: float) -> float:
        walks = walks_of(cells, {left_out, cell.workload.dataset})
        some = [by_search(cell, seed, walks, least_gain) for seed in CHOICE_SEEDS]
        return fmean(until_j(swept, cap_j[cell.name]) for swept in some) / cap_j[cell.name]

    chosen = {}
    for number in progress("workloads left out", len(WORKLOADS)):
        dataset = WORKLOADS[number].dataset
        others = [cell for cell in cells if cell.workload.dataset != dataset]
        shares = {gain: fmean(share_of_cap(cell, dataset, gain) for cell in others) for gain in LEAST_GAINS}
        chosen[dataset] = min(shares, key=shares.__getitem__)
    return chosen


def until_j(swept: Swept, cap_j: float, *, kept: bool = False) -> float:
    """Return what a sweep spent until it had a configuration, or the cap if it never had."""
    spent_j = swept.kept_j if kept else swept.found_j
    return cap_j if spent_j is None else spent_j


def all_sweeps(cells: Sequence[SweepCell], gains: Mapping[str, float]) -> BySweep:
    """Return the sweeps of all seeds."""
    rows: BySweep = {OURS: {}, **{name: {} for name in PRUNERS}}
    for number in progress("cells", len(cells)):
        cell = cells[number]
        dataset = cell.workload.dataset
        walks = walks_of(cells, {dataset})
        rows[OURS][cell.name] = [by_search(cell, seed, walks, gains[dataset]) for seed in SEEDS]
        for name, way in PRUNERS.items():
            rows[name][cell.name] = [by_tpe(cell, seed, way) for seed in SEEDS]
    return rows


def caps_j(cells: Sequence[SweepCell], rows: BySweep) -> dict[str, float]:
    """Return what a sweep that never found a configuration is charged, by cell."""
    return {cell.name: fmean(swept.spent_j for swept in rows[MEDIAN][cell.name]) for cell in cells}


def halvings(cells: Sequence[SweepCell], cap_j: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return what halving in epochs and in joules do with the same joules, the cap: means of all cells and seeds."""
    found = {}
    for number in progress("halvings", len(HALVINGS)):
        name, way = list(HALVINGS.items())[number]
        some = [by_tpe(cell, seed, way, cap_j[cell.name]) for cell in cells for seed in HALVING_SEEDS]
        found[name] = {
            "until_found_of_cap": fmean(
                min(until_j(one, cap) / cap, 1.0) for one in some for cap in [cap_j[one.cell.name]]
            ),
            "found": fmean(one.found_j is not None for one in some),
            "saving": fmean(one.saving for one in some),
            "trials": fmean(one.trials for one in some),
        }
    return found


def figures(cells: Sequence[SweepCell], rows: BySweep) -> dict[str, dict[str, dict[str, float]]]:
    """Return the means over seeds, by way and cell, and under "mean" those over cells."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    cap_j = caps_j(cells, rows)
    for way, by_cell in rows.items():
        found[way] = {}
        for cell in cells:
            some, cap, oracle = by_cell[cell.name], cap_j[cell.name], 1 - cell.least_j / cell.default_j
            median_j = fmean(until_j(swept, cap) for swept in rows[MEDIAN][cell.name])
            kept_j = fmean(until_j(swept, cap, kept=True) for swept in rows[MEDIAN][cell.name])
            found[way][cell.name] = {
                "until_found_j": fmean(until_j(swept, cap) for swept in some),
                "of_median_pruner": fmean(until_j(swept, cap) for swept in some) / median_j,
                "kept_of_median_pruner": fmean(until_j(swept, cap, kept=True) for swept in some) / kept_j,
                "until_found_over_least": fmean(until_j(swept, cap) for swept in some) / cell.least_j,
                "found": fmean(swept.found_j is not None for swept in some),
                "spent_over_least": fmean(swept.spent_j for swept in some) / cell.least_j,
                "trials": fmean(swept.trials for swept in some),
                "saving": fmean(swept.saving for swept in some),
                "least_saving": min(swept.saving for swept in some),
                "oracle": oracle,
                "share_of_oracle": fmean(swept.saving for swept in some) / oracle,
            }
        cells_of = list(found[way].values())
        found[way]["mean"] = {key: fmean(one[key] for one in cells_of) for key in cells_of[0]}
        means = found[way]["mean"]
        means["share_of_mean_oracle"] = means["saving"] / means["oracle"]
    return found


def against_best(cells: Sequence[SweepCell], found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> float:
    """Return what ours spends until found, as a share of the cheapest of Optuna's pruners in each cell."""
    return fmean(
        found[OURS][cell.name]["until_found_j"] / min(found[way][cell.name]["until_found_j"] for way in PRUNERS)
        for cell in cells
    )


def bars(found: Mapping[str, Mapping[str, Mapping[str, float]]], of_best: float) -> list[Bar]:
    """Return what the figures must reach."""
    ours = found[OURS]["mean"]
    return [
        Bar("joules until found, of TPE with median pruner, mean of cells", ours["of_median_pruner"], at_most=0.5),
        Bar("the same until found and kept", ours["kept_of_median_pruner"], at_most=0.5),
        Bar("the same of the cheapest of Optuna's pruners in each cell", of_best, at_most=0.5),
        Bar("saving of what is found, of the oracle's mean saving", ours["share_of_mean_oracle"], at_least=0.85),
        Bar("mean of cells of their shares of the oracle's saving", ours["share_of_oracle"], at_least=0.85),
    ]


def print_cells(cells: Sequence[SweepCell], found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Print each cell, and each of Optuna's pruners."""
    say(f"\nmeans of {len(SEEDS)} seeds; joules are multiples of the least energy to the target\n")
    table = [("cell", "until found", "TPE + median", "share", "found", "TPE's", "spent", "saving", "oracle", "least")]
    for cell in cells:
        ours, median = found[OURS][cell.name], found[MEDIAN][cell.name]
        table.append(
            (
                cell.name,
                f"{ours['until_found_over_least']:.1f}",
                f"{median['until_found_over_least']:.1f}",
                f"{ours['of_median_pruner']:.1%}",
                f"{ours['found']:.0%}",
                f"{median['found']:.0%}",
                f"{ours['spent_over_least']:.1f}",
                f"{ours['saving']:.1%}",
                f"{ours['oracle']:.1%}",
                f"{ours['least_saving']:.1%}",
            )
        )
    print_table(table)
    say("")
    print_table(
        [
            ("mean of cells", "until found, of TPE + median", "found", "saving"),
            *(
                (way, f"{means['of_median_pruner']:.1%}", f"{means['found']:.0%}", f"{means['saving']:.1%}")
                for way, means in ((way, by_cell["mean"]) for way, by_cell in found.items())
            ),
        ]
    )


def print_halvings(halved: Mapping[str, Mapping[str, float]]) -> None:
    """Print both kinds of halving."""
    say("\nTPE with successive halving, all with the joules of the cap")
    print_table(
        [
            ("rungs", "until found, of the cap", "found", "saving", "trials"),
            *(
                (
                    name,
                    f"{one['until_found_of_cap']:.1%}",
                    f"{one['found']:.0%}",
                    f"{one['saving']:.1%}",
                    f"{one['trials']:.0f}",
                )
                for name, one in halved.items()
            ),
        ]
    )


def table_of(rows: Mapping[str, Sequence[Swept]]) -> Table:
    """Return sweeps as columns: of each cell all seeds, in their order; 0 J is never."""
    flat = [swept for some in rows.values() for swept in some]
    return {
        "found_j": [swept.found_j or 0.0 for swept in flat],
        "kept_j": [swept.kept_j or 0.0 for swept in flat],
        "spent_j": [swept.spent_j for swept in flat],
        "trials": [swept.trials for swept in flat],
        "batch": [swept.best[0] if swept.best else 0 for swept in flat],
        "limit_w": [swept.best[1] if swept.best else 0.0 for swept in flat],
    }


def main() -> int:
    """Replay, print, write, and return 1 if a bar is missed."""
    named = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("ENERGY_TRACES")
    if named is None:
        say("sweep_traces: skipped, pass the folder of the recorded traces, or name it in ENERGY_TRACES")
        return 0
    folder = Path(named)
    missing = [file for file in (*FILES.values(), EPOCHS_FILE) if not (folder / file).exists()]
    if missing:
        say(f"sweep_traces: skipped, there is no {' and no '.join(missing)} in {folder}")
        return 0
    cells = sweep_cells(folder)
    gains = chosen_gains(cells)
    rows = all_sweeps(cells, gains)
    found = figures(cells, rows)
    of_best = against_best(cells, found)
    halved = halvings(cells, caps_j(cells, rows))
    print_cells(cells, found)
    print_halvings(halved)
    walks = {dataset: walks_of(cells, {dataset}) for dataset in gains} | {"none": walks_of(cells)}
    told = {
        "replay": {
            "source": SOURCE,
            "cells": [cell.name for cell in cells],
            "seeds": SEEDS,
            "most_trials": MOST_TRIALS,
            "most_epochs": {cell.workload.dataset: cell.most_epochs for cell in cells},
            "found_within": WITHIN,
            "window": {"length_s": WINDOW_S, "noise": WINDOW_NOISE},
        },
        "left_out": {
            "choice_seeds": CHOICE_SEEDS,
            "least_gains": LEAST_GAINS,
            "least_gain": gains,
            "walks": {
                dataset: {"epochs": vars(epochs), "epoch_energy": vars(energy)}
                for dataset, (epochs, energy) in walks.items()
            },
        },
        "of_cheapest_pruner": of_best,
        "halving_at_equal_joules": {"seeds": HALVING_SEEDS, "most_trials": MOST_TRIALS_BY_ENERGY, **halved},
        "by_way": found,
    }
    raw = {way: table_of(by_cell) for way, by_cell in rows.items()}
    gpus = ["V100 and A40 as recorded by Zeus, with added noise"]
    return finish("sweep_traces", gpus=gpus, figures=told, bars=bars(found, of_best), raw=raw, kind=Kind.REPLAYED)


if __name__ == "__main__":
    sys.exit(main())
