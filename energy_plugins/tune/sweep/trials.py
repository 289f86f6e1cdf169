"""What a sweep over batch sizes and power limits has to choose from, and what its trials have told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from energy_plugins.errors import ConfigError, WindowError
from energy_plugins.tune.sweep.batch_walk import BatchWalk
from energy_plugins.tune.sweep.successive_halving import Told

EPOCHS: Final = BatchWalk(above=0.20, below=-0.07, sd=0.31, noise=0.11)
EPOCH_ENERGY: Final = BatchWalk(above=-0.05, below=-0.16, sd=0.28)
"""Of Zeus's six recorded workloads on a V100 and an A40 (`benchmarks/sweep_traces.py`, which leaves out the one it
tests on): a doubled batch needs a fifth more epochs above the usual size; a halved one draws a sixth more below it."""
LEAST_GAIN: Final = 0.002
"""What was best on most of them."""


@dataclass(frozen=True)
class SweepTrial:
    """One training with one batch size.

    Raises:
        WindowError: joules of an epoch that are no positive, finite number.
    """

    batch: int
    epoch_j: Mapping[float, float] = field(default_factory=dict)
    """Joules of an epoch by power limit (W), from windows of a few seconds each."""
    curve: tuple[tuple[float, float | None], ...] = ()
    """Epochs and metric of each evaluation; more is better, None if there was none."""
    reached: bool = False
    """Whether the last evaluation had reached the target."""
    behind: float = 1.0
    """How many times the joules of the best one it had drawn for the same metric when stopped; 1 if unknown."""

    def __post_init__(self) -> None:
        for limit_w, joules in self.epoch_j.items():
            if not 0 < joules < math.inf:
                raise WindowError(f"an epoch at {limit_w:g} W draws {joules!r} J: measure a longer window, or leave it")

    @property
    def limit_w(self) -> float:
        """The limit with the least joules of an epoch."""
        return min(self.epoch_j, key=self.epoch_j.__getitem__)

    @property
    def least_epoch_j(self) -> float:
        """Those joules."""
        return self.epoch_j[self.limit_w]

    @property
    def epochs(self) -> float:
        """How many it was trained until its last evaluation."""
        return self.curve[-1][0] if self.curve else 0.0

    @property
    def diverged(self) -> bool:
        """Whether its metric was no number at the last evaluation."""
        return bool(self.curve) and self.curve[-1][1] is not None and math.isnan(self.curve[-1][1])

    @property
    def energy_j(self) -> float:
        """What these draw at its best limit: windows at others are not held against it."""
        return self.epochs * self.least_epoch_j

    def told(self) -> tuple[Told, ...]:
        """Return the metric by such joules."""
        return tuple(
            Told(epochs * self.least_epoch_j, value)
            for epochs, value in self.curve
            if value is not None and not math.isnan(value)
        )


@dataclass(frozen=True)
class Sweep:
    """The space to search, what is expected of it, and what trials have told.

    Args:
        batches: sizes that may be used.
        limits_w: power limits that may be set (W).
        start_batch: the usual size; trained first.
        epochs: how epochs to the target change with the batch size.
        epoch_energy: how joules of an epoch do.
        least_gain: what is expected to gain less, as a share of the least energy known, is not trained.
        trials: those that have ended.

    Raises:
        ConfigError: there is nothing to choose from, or the usual size is not among the sizes.
    """

    batches: tuple[int, ...]
    limits_w: tuple[float, ...]
    start_batch: int
    epochs: BatchWalk = EPOCHS
    epoch_energy: BatchWalk = EPOCH_ENERGY
    least_gain: float = LEAST_GAIN
    trials: tuple[SweepTrial, ...] = ()

    def __post_init__(self) -> None:
        if self.start_batch not in self.batches or min(self.batches) < 1:
            raise ConfigError(f"start_batch is {self.start_batch}, and the sizes to choose from are {self.batches}")
        if not self.limits_w or not 0 < min(self.limits_w) <= max(self.limits_w) < math.inf:
            raise ConfigError(f"the power limits to choose from are {self.limits_w}: give one at least, in watts")

    @property
    def best(self) -> SweepTrial | None:
        """The trial that reached the target with the least energy; None if none did."""
        return min((trial for trial in self.trials if trial.reached), key=lambda trial: trial.energy_j, default=None)

    def with_trial(self, trial: SweepTrial) -> Sweep:
        """Return the sweep that knows a trial that has ended."""
        return replace(self, trials=(*self.trials, trial))

    def doublings(self, batch: int) -> float:
        """Return how many times the usual size has to be doubled for ``batch``."""
        return math.log2(batch / self.start_batch)
