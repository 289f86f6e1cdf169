"""Runs as people count them: the ranks of a training are one, a GPU counts once, and so do runs inside each other."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from energy_plugins.measure.ledger_entry import GpuEntry, LedgerRow, Status

_WORST_FIRST: Final = (Status.RUNNING, Status.KILLED, Status.SILENT, Status.FAILED, Status.FINISHED)
"""What a training is whose ranks ended differently: the first of these that one of them is."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training, or whatever else was measured as one. Joules are of GPUs."""

    run_id: str
    """That of rank 0, or of the lowest rank that is known."""
    name: str
    nodes: tuple[str, ...]
    user: str
    project: str
    model: str
    framework: str
    simulated: bool
    started: str
    """Wall time in UTC, ISO 8601."""
    status: Status
    ranks: int
    """How many of its processes the ledger knows."""
    world_size: int
    """How many there were."""
    duration_s: float
    gpus: tuple[GpuEntry, ...]
    """Each once."""
    energy_j: float | None
    """What was measured of it, None if nothing was."""
    missing: str
    """Why nothing was."""
    own_j: Mapping[str, float]
    """By GPU: what counts as its own in sums, which is not what runs inside it drew."""
    holds_runs: bool
    """Whether runs inside it are in the ledger: then they are the jobs, and it is what was around them."""
    steps: int
    samples: int | None
    tokens: int | None

    @property
    def counted_j(self) -> float:
        """What it adds to a sum of all runs."""
        return math.fsum(self.own_j.values())


def runs_of(rows: Iterable[LedgerRow]) -> tuple[Run, ...]:
    """Return the runs that rows are of, in the order of their start.

    A GPU that several ranks of a training measured counts once, with the most that one of them saw. Of a run that was
    measured around others what they drew on the same GPUs is taken off, so that the sum of all is what the GPUs drew.
    """
    ranks: dict[str, list[LedgerRow]] = defaultdict(list)
    for row in rows:
        if row.status is not Status.DISCARDED:
            ranks[row.training_id].append(row)
    trainings = {training_id: sorted(some, key=lambda row: row.rank) for training_id, some in ranks.items()}
    gpus = {training_id: _each_once(some) for training_id, some in trainings.items()}
    row_of = {row.run_id: row for some in trainings.values() for row in some}
    within: dict[str, dict[str, float]] = defaultdict(dict)
    for training_id, some in trainings.items():
        around = row_of.get(some[0].inside)
        if around is None or around.training_id == training_id or not _began_within(some[0], around):
            continue
        inner_j = within[around.training_id]
        for gpu in gpus[training_id]:
            inner_j[gpu.uuid] = inner_j.get(gpu.uuid, 0.0) + (gpu.energy_j or 0.0)
    runs = (_run(some, gpus[training_id], within.get(training_id)) for training_id, some in trainings.items())
    return tuple(sorted(runs, key=lambda run: (run.started, run.run_id)))


def _each_once(rows: Sequence[LedgerRow]) -> tuple[GpuEntry, ...]:
    found: dict[str, GpuEntry] = {}
    for gpu in (gpu for row in rows for gpu in row.gpus):
        before = found.setdefault(gpu.uuid, gpu)
        if gpu.energy_j is not None and (before.energy_j is None or gpu.energy_j > before.energy_j):
            found[gpu.uuid] = gpu
    return tuple(found.values())


def _began_within(inner: LedgerRow, outer: LedgerRow) -> bool:
    """Tell whether a run began before the one around it ended: what a command leaves behind may measure later."""
    began, ended = (datetime.fromisoformat(row.started).timestamp() for row in (inner, outer))
    return began <= ended + outer.duration_s


def _run(rows: Sequence[LedgerRow], gpus: tuple[GpuEntry, ...], within_j: Mapping[str, float] | None) -> Run:
    first, inner_j = rows[0], within_j or {}
    known_j = {gpu.uuid: gpu.energy_j for gpu in gpus if gpu.energy_j is not None}
    return Run(
        run_id=first.run_id,
        name=first.name,
        nodes=tuple(dict.fromkeys(row.node for row in rows)),
        user=first.user,
        project=first.project,
        model=first.model,
        framework=first.framework,
        simulated=any(row.simulated for row in rows),
        started=min(row.started for row in rows),
        status=next(status for status in _WORST_FIRST if any(row.status is status for row in rows)),
        ranks=len(rows),
        world_size=max(first.world_size, len(rows)),
        duration_s=max(row.duration_s for row in rows),
        gpus=gpus,
        energy_j=math.fsum(known_j.values()) if known_j else None,
        missing="" if known_j else next((row.missing for row in rows if row.missing), "nobody said why"),
        own_j={uuid: max(joules - inner_j.get(uuid, 0.0), 0.0) for uuid, joules in known_j.items()},
        holds_runs=within_j is not None,
        steps=first.steps,
        samples=_sum(row.samples for row in rows),
        tokens=_sum(row.tokens for row in rows),
    )


def _sum(counts: Iterable[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
