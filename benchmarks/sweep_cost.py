"""What the sweep layer costs a trial beyond Optuna and beyond the meter: charging it, its heartbeat and its marks.

Each round is a trial that trains nothing, in a study in SQLite: as Optuna has it, with a meter around, and with
`energy_objective`, which has the same meter. The simulated GPU stands for the driver; storage, threads and files are
real.

    python benchmarks/sweep_cost.py [--rounds 30]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
from _common import Bar, bootstrap, finish, gpu_names, progress

from energy_plugins import EnergyMeter
from energy_plugins.optuna import StudyEnergyBudget, energy_objective
from energy_plugins.testing import simulated_gpus

Objective = Callable[[optuna.Trial], tuple[float, float]]
_AT_MOST_MS = 50.0
_LESS_KWH = 1e3


def fn(trial: optuna.Trial) -> float:
    """Train nothing."""
    return trial.suggest_float("x", 0.0, 1.0)


def plain(trial: optuna.Trial) -> tuple[float, float]:
    """Return what Optuna alone would have."""
    return fn(trial), 0.0


def metered(trial: optuna.Trial) -> tuple[float, float]:
    """Measure, and charge nobody."""
    with EnergyMeter(f"bench trial {trial.number}", config={"trial": trial.number}) as meter:
        value = fn(trial)
    return value, meter.report().total_j or 0.0


def charged(trial: optuna.Trial) -> tuple[float, float]:
    """Measure, and charge the trial."""
    return energy_objective(trial, fn)


def took_ms(study: optuna.Study, objective: Objective, *, budget: bool) -> float:
    """Return how long one trial took, from ask to tell."""
    callbacks = [StudyEnergyBudget(_LESS_KWH)] if budget else []
    began_s = time.perf_counter()
    study.optimize(objective, n_trials=1, callbacks=callbacks)
    return (time.perf_counter() - began_s) * 1e3


def main() -> int:
    """Run the trials in turn, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ways: dict[str, Objective] = {"optuna": plain, "meter": metered, "sweep": charged}
    seen: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder, simulated_gpus():
        gpus = gpu_names()
        studies = {
            way: optuna.create_study(
                storage=f"sqlite:///{Path(folder) / f'{way}.db'}",
                directions=["minimize", "minimize"],
                sampler=optuna.samplers.RandomSampler(seed=0),
            )
            for way in ways
        }
        for number in progress("rounds", rounds + 1):
            for way, objective in ways.items():
                took = took_ms(studies[way], objective, budget=way == "sweep")
                if number:  # the first one imports and makes tables
                    seen[way].append(took)
    layer = np.array(seen["sweep"]) - np.array(seen["meter"])
    beyond = np.array(seen["sweep"]) - np.array(seen["optuna"])
    figures = {
        "layer_median_ms": float(np.median(layer)),
        "layer_interval_95": bootstrap([np.array([one]) for one in layer], lambda kept: float(np.median(kept))),
        "with_meter_median_ms": float(np.median(beyond)),
        "optuna_median_ms": statistics.median(seen["optuna"]),
    }
    bars = [Bar("sweep layer per trial beyond Optuna and a meter, median, ms", float(np.median(layer)),
                at_most=_AT_MOST_MS, show=".1f")]  # fmt: skip
    return finish(
        "sweep_cost",
        gpus=gpus,
        figures={"cost": figures},
        bars=bars,
        raw={"trials_ms": {way: np.array(took) for way, took in seen.items()}},
    )


if __name__ == "__main__":
    sys.exit(main())
