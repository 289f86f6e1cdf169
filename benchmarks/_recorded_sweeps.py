"""Trainings that Zeus recorded, as a sweep meets them: batch sizes, power limits, real seeds, epoch by epoch."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from _recorded import FILES

EPOCHS_FILE = "zeus_train.csv"


@dataclass(frozen=True)
class Workload:
    """What is trained, to which metric, and how its users begin."""

    dataset: str
    network: str
    optimizer: str
    default_batch: int
    target: float
    less_is_better: bool = False

    @property
    def name(self) -> str:
        """Dataset and network."""
        return f"{self.dataset} {self.network}"


WORKLOADS = (
    Workload("cifar100", "shufflenetv2", "adadelta", 1024, 0.5),
    Workload("imagenet", "resnet50", "adadelta", 256, 0.65),
    Workload("librispeech", "deepspeech2", "adamw", 192, 40.0, less_is_better=True),
    Workload("movielens-1m", "ncf", "adam", 1024, 0.41),
    Workload("squad", "bert_base_uncased", "adamw", 32, 84.0),
    Workload("sentiment140", "bert_base_uncased", "adamw", 128, 0.84),
)
"""Defaults and targets of Zeus's paper (NSDI'23, table 1)."""


@dataclass(frozen=True)
class Run:
    """One recorded seed: by which epoch which value of the metric was reached."""

    reached: tuple[tuple[int, float], ...]
    """Epoch and value, both rising; a value stands for "at least", and is negative where less is better."""
    target_epoch: int | None
    """None if the target was never reached."""

    def value(self, epoch: float) -> float | None:
        """Return what the metric had reached after ``epoch`` epochs, None if nothing that was recorded."""
        return max((value for at, value in self.reached if at <= epoch), default=None)


@dataclass(frozen=True)
class SweepCell:
    """One workload on one GPU."""

    gpu: str
    workload: Workload
    limits_w: tuple[float, ...]
    epoch_s: Mapping[tuple[int, float], float]
    """Of an epoch by batch size and power limit."""
    power_w: Mapping[tuple[int, float], float]
    """Mean power, likewise."""
    runs: Mapping[int, tuple[Run, ...]]
    """By batch size."""
    most_epochs: int
    """After which a training ends that has not reached its target: the most that one was recorded to need."""

    @property
    def name(self) -> str:
        """GPU and workload."""
        return f"{self.gpu} {self.workload.name}"

    @property
    def target(self) -> float:
        """Of the metric, of which more is better."""
        return -self.workload.target if self.workload.less_is_better else self.workload.target

    @property
    def batches(self) -> tuple[int, ...]:
        """All sizes whose power and epochs were recorded."""
        return tuple(sorted(self.runs))

    def epoch_j(self, batch: int, limit_w: float) -> float:
        """Return what an epoch draws."""
        return self.epoch_s[batch, limit_w] * self.power_w[batch, limit_w]

    def to_target_j(self, batch: int, limit_w: float) -> float:
        """Return the energy to the target: mean epochs of the seeds that reached it, times an epoch's energy."""
        needed = [run.target_epoch for run in self.runs[batch] if run.target_epoch is not None]
        return fmean(needed) * self.epoch_j(batch, limit_w) if needed else math.inf

    @property
    def least_j(self) -> float:
        """The least energy to the target."""
        return min(self.to_target_j(*configuration) for configuration in self.epoch_s)

    @property
    def default_j(self) -> float:
        """That of the default batch at the highest limit."""
        return self.to_target_j(self.workload.default_batch, self.limits_w[-1])


def sweep_cells(folder: Path) -> list[SweepCell]:
    """Return the 12 cells of the files in ``folder``."""
    runs = {workload: runs_of(folder, workload) for workload in WORKLOADS}
    return [
        cell_of(folder / file, gpu, workload, runs[workload]) for gpu, file in FILES.items() for workload in WORKLOADS
    ]


def cell_of(file: Path, gpu: str, workload: Workload, runs: Mapping[int, tuple[Run, ...]]) -> SweepCell:
    """Return one workload on one GPU."""
    epoch_s, power_w = {}, {}
    for row in _rows(file, workload):
        place = int(row["batch_size"]), float(row["power_limit"])
        if place[0] in runs:
            epoch_s[place], power_w[place] = float(row["time_per_epoch"]), float(row["average_power"])
    needed = [run.target_epoch for of_batch in runs.values() for run in of_batch if run.target_epoch is not None]
    limits_w = tuple(sorted({limit_w for _, limit_w in epoch_s}))
    known = {batch: of_batch for batch, of_batch in runs.items() if (batch, limits_w[-1]) in epoch_s}
    return SweepCell(gpu, workload, limits_w, epoch_s, power_w, known, max(needed))


def runs_of(folder: Path, workload: Workload) -> dict[int, tuple[Run, ...]]:
    """Return the recorded seeds of a workload, by batch size."""
    sign = -1 if workload.less_is_better else 1
    epochs: dict[tuple[int, str], dict[float, int]] = defaultdict(dict)
    for row in _rows(folder / EPOCHS_FILE, workload):
        reached = epochs[int(row["batch_size"]), row["run"]]
        epoch = float(row["target_epoch"])
        if math.isfinite(epoch):
            reached[sign * float(row["target_metric"])] = int(epoch)
    found: dict[int, list[Run]] = defaultdict(list)
    for (batch, _), reached in epochs.items():
        rising = tuple(sorted((epoch, value) for value, epoch in reached.items()))
        found[batch].append(Run(rising, reached.get(sign * workload.target)))
    return {batch: tuple(of_batch) for batch, of_batch in found.items()}


def _rows(file: Path, workload: Workload) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    wanted = {"dataset": workload.dataset, "network": workload.network, "optimizer": workload.optimizer}
    return [row for row in rows if wanted.items() <= row.items()]
