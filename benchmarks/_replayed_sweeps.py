"""Sweeps of recorded trainings: by our search, and by Optuna's TPE with one of several pruners."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean, variance

import numpy as np
import optuna
from _recorded_sweeps import Run, SweepCell
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner

from energy_plugins.optuna import EnergySuccessiveHalvingPruner
from energy_plugins.optuna.attributes import TOTAL_J, TRIAL
from energy_plugins.tune.sweep.batch_walk import BatchWalk
from energy_plugins.tune.sweep.energy_to_target import Evaluation, propose, search_energy_to_target
from energy_plugins.tune.sweep.trials import Sweep

MOST_TRIALS = 30
MOST_TRIALS_BY_ENERGY = 100
WITHIN = 0.05
"""Of the least energy to the target: such a configuration is found."""
WINDOW_S, WINDOW_NOISE = 5.0, 0.005
"""Of a window at one power limit; of an epoch's energy as it tells it."""

optuna.logging.set_verbosity(optuna.logging.ERROR)


@dataclass
class Swept:
    """What one sweep spent, and what it had when."""

    cell: SweepCell
    seed: int
    spent_j: float = 0.0
    trials: int = 0
    found_j: float | None = None
    """Spent until it had a configuration that counts as found; None if it never had."""
    kept_j: float | None = None
    """The same of one that it still had at its end, or a better one."""
    best: tuple[int, float] | None = None
    """Batch size and power limit at its end."""

    def note(self, best: tuple[int, float] | None, tried: tuple[int, float] | None = None) -> None:
        """Take note of the best configuration after a trial, and of the one that was tried and reached the target."""
        self.trials += 1
        self.best = best
        found = self._is_found(best)
        if (found or self._is_found(tried)) and self.found_j is None:
            self.found_j = self.spent_j
        if not found:
            self.kept_j = None
        elif self.kept_j is None:
            self.kept_j = self.spent_j

    def _is_found(self, configuration: tuple[int, float] | None) -> bool:
        return configuration is not None and (self.cell.to_target_j(*configuration) <= (1 + WITHIN) * self.cell.least_j)

    @property
    def saving(self) -> float:
        """Saving of energy to the target against the default; 0 if the target was never reached."""
        return 0.0 if self.best is None else 1 - self.cell.to_target_j(*self.best) / self.cell.default_j


@dataclass
class Replayed:
    """A recorded training that is done again, with a seed drawn from those recorded."""

    swept: Swept
    batch: int
    rng: np.random.Generator
    epochs: float = 0.0
    told: int = 0
    run: Run = field(init=False)

    def __post_init__(self) -> None:
        runs = self.swept.cell.runs[self.batch]
        self.run = runs[self.rng.integers(len(runs))]

    def window(self, limit_w: float) -> float:
        """Train for a window, and return the joules of an epoch as it tells them."""
        cell = self.swept.cell
        self.swept.spent_j += WINDOW_S * cell.power_w[self.batch, limit_w]
        self.epochs += WINDOW_S / cell.epoch_s[self.batch, limit_w]
        return cell.epoch_j(self.batch, limit_w) * (1 + WINDOW_NOISE * self.rng.normal())

    def until_evaluated(self, limit_w: float) -> Evaluation:
        """Train until an epoch ends; of those that ended in windows the evaluations are told one by one, for free."""
        self.told += 1
        left = max(self.told - self.epochs, 0.0)
        self.swept.spent_j += left * self.swept.cell.epoch_j(self.batch, limit_w)
        self.epochs += left
        return Evaluation(
            epochs=self.told,
            value=self.run.value(self.told),
            reached=self.told == self.run.target_epoch,
            ended=self.told >= self.swept.cell.most_epochs,
        )


def by_search(cell: SweepCell, seed: int, walks: tuple[BatchWalk, BatchWalk], least_gain: float) -> Swept:
    """Sweep by our search, a trial at a time."""
    rng, swept = np.random.default_rng(seed), Swept(cell, seed)
    sweep = Sweep(cell.batches, cell.limits_w, cell.workload.default_batch, *walks, least_gain)
    while len(sweep.trials) < MOST_TRIALS and propose(sweep) is not None:
        sweep = search_energy_to_target(
            lambda batch: Replayed(swept, batch, rng), sweep, most_trials=len(sweep.trials) + 1
        )
        swept.note(None if sweep.best is None else (sweep.best.batch, sweep.best.limit_w))
    return swept


@dataclass(frozen=True)
class Tpe:
    """Optuna's TPE, with the default at the highest limit as its first trial, and a pruner."""

    pruner: Callable[[], BasePruner]
    categories: bool = False
    """Whether sizes and limits are categories to it; else they are the places in their rising order."""
    by_energy: bool = False
    """Whether the joules drawn are reported at each epoch; else how far the metric is from its target."""


MEDIAN = "TPE, median pruner, epochs"
PRUNERS = {
    MEDIAN: Tpe(MedianPruner),
    "the same, sizes and limits as categories": Tpe(MedianPruner, categories=True),
    "the same, of joules at each epoch": Tpe(MedianPruner, by_energy=True),
    "TPE, no pruner": Tpe(NopPruner),
    "TPE, successive halving in epochs": Tpe(SuccessiveHalvingPruner),
}
HALVINGS = {
    **{
        f"in epochs, 1 in {factor}": Tpe(partial(SuccessiveHalvingPruner, reduction_factor=factor)) for factor in (2, 3)
    },
    **{
        f"in joules, 1 in {factor}": Tpe(partial(EnergySuccessiveHalvingPruner, reduction_factor=factor))
        for factor in (2, 3)
    },
}


def by_tpe(cell: SweepCell, seed: int, way: Tpe, most_j: float | None = None) -> Swept:
    """Sweep by Optuna: each trial is a size and a limit, trained until its target, its pruning or the last epoch.

    With ``most_j`` trials are begun until so much is spent, at most `MOST_TRIALS_BY_ENERGY`; else `MOST_TRIALS`.
    """
    rng, swept = np.random.default_rng(seed), Swept(cell, seed)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed), pruner=way.pruner())
    default = cell.workload.default_batch, cell.limits_w[-1]
    axes: dict[str, Sequence[float]] = {"batch": cell.batches, "limit_w": cell.limits_w}
    first = {
        name: value if way.categories else axis.index(value)
        for (name, axis), value in zip(axes.items(), default, strict=True)
    }
    study.enqueue_trial(first)
    configurations: dict[int, tuple[int, float]] = {}
    most = MOST_TRIALS if most_j is None else MOST_TRIALS_BY_ENERGY
    while len(configurations) < most and (most_j is None or swept.spent_j < most_j):
        trial = study.ask()
        batch, limit_w = (
            trial.suggest_categorical(name, axis) if way.categories else axis[trial.suggest_int(name, 0, len(axis) - 1)]
            for name, axis in axes.items()
        )
        configurations[trial.number] = int(batch), float(limit_w)
        energy_j = _trained(trial, Replayed(swept, int(batch), rng), float(limit_w), way)
        state = None if energy_j is not None else optuna.trial.TrialState.PRUNED
        study.tell(trial, energy_j, state)
        ended = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        best = configurations[study.best_trial.number] if ended else None
        swept.note(best, configurations[trial.number] if energy_j is not None else None)
    return swept


def _trained(trial: optuna.Trial, training: Replayed, limit_w: float, way: Tpe) -> float | None:
    """Return the energy to the target, None if it was not reached."""
    before_j = training.swept.spent_j
    while True:
        seen = training.until_evaluated(limit_w)
        energy_j = training.swept.spent_j - before_j
        if seen.reached:
            return energy_j
        if seen.value is not None or way.by_energy:
            trial.set_user_attr(TRIAL, float(trial.number))
            trial.set_user_attr(TOTAL_J, energy_j)
            gap = math.inf if seen.value is None else training.swept.cell.target - seen.value
            trial.report(energy_j if way.by_energy else gap, int(seen.epochs))
            if trial.should_prune():
                return None
        if seen.ended:
            return None


def walks_of(cells: Sequence[SweepCell], without: Collection[str] = ()) -> tuple[BatchWalk, BatchWalk]:
    """Return how epochs to the target and joules of an epoch change with the batch size, workloads left out."""
    known = [cell for cell in cells if cell.workload.dataset not in without]
    by_workload = {cell.workload: cell for cell in known}.values()
    epochs, scatter = [], []
    for cell in by_workload:
        needed = {
            batch: [run.target_epoch for run in runs if run.target_epoch is not None]
            for batch, runs in cell.runs.items()
        }
        epochs.append({_doublings(cell, batch): math.log(fmean(some)) for batch, some in needed.items() if some})
        scatter += [variance(map(math.log, some)) for some in needed.values() if len(some) > 1]
    energy = [
        {
            _doublings(cell, batch): math.log(min(cell.epoch_j(batch, limit_w) for limit_w in cell.limits_w))
            for batch in cell.batches
        }
        for cell in known
    ]
    return BatchWalk.fitted(epochs, math.sqrt(fmean(scatter))), BatchWalk.fitted(energy)


def _doublings(cell: SweepCell, batch: int) -> float:
    return math.log2(batch / cell.workload.default_batch)
