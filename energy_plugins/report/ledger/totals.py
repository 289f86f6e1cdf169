"""What runs cost together: by project, model, user, month or GPU, and what there is to charge for it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final

from energy_plugins.measure.ledger_entry import Status
from energy_plugins.report.ledger.runs import Run
from energy_plugins.units import j_to_kwh


class By(Enum):
    """What runs are put together by."""

    PROJECT = "project"
    MODEL = "model"
    USER = "user"
    MONTH = "month"
    GPU = "gpu"


@dataclass(frozen=True)
class Price:
    """What is charged, in whatever currency; both may be."""

    per_kwh: float = 0.0
    per_job: float = 0.0

    def of(self, energy_j: float, jobs: int) -> float:
        """Return what ``jobs`` that drew ``energy_j`` are charged."""
        return self.per_kwh * j_to_kwh(energy_j) + self.per_job * jobs


@dataclass(frozen=True, kw_only=True)
class Total:
    """What runs cost together, failed and killed ones included."""

    group: str
    """What they have in common; empty of those of which it is not known."""
    jobs: int
    """Runs, of those inside each other the innermost."""
    not_finished: int
    """Jobs among them that failed, were killed or fell silent."""
    unmeasured: int
    """Jobs of which no joules are known."""
    energy_j: float
    """Of all of them, each joule once."""
    wasted_j: float
    """The part of it that jobs drew which did not finish."""

    @property
    def jobs_per_kwh(self) -> float | None:
        """Jobs of which the joules are known per kilowatt-hour; None if they drew nothing."""
        known = self.jobs - self.unmeasured
        return known / j_to_kwh(self.energy_j) if self.energy_j > 0 else None


_KEYS: Final[Mapping[By, Callable[[Run], str]]] = MappingProxyType(
    {
        By.PROJECT: lambda run: run.project,
        By.MODEL: lambda run: run.model,
        By.USER: lambda run: run.user,
        By.MONTH: lambda run: run.started[:7],
    }
)
_NOT_FINISHED: Final = frozenset({Status.FAILED, Status.KILLED, Status.SILENT})


def totals(runs: Iterable[Run], by: By) -> tuple[Total, ...]:
    """Return a total for each group, the costliest first.

    A run on GPUs of several names is a job in each of their groups, with what it drew there.
    """
    groups: dict[str, list[tuple[Run, float]]] = defaultdict(list)
    for run in runs:
        for group, energy_j in _shares(run, by):
            groups[group].append((run, energy_j))
    return tuple(
        sorted((_total(group, some) for group, some in groups.items()), key=lambda one: (-one.energy_j, one.group))
    )


def overall(runs: Iterable[Run]) -> Total:
    """Return the total of all runs."""
    return _total("", [(run, run.counted_j) for run in runs])


def _shares(run: Run, by: By) -> Iterator[tuple[str, float]]:
    if by is not By.GPU:
        yield _KEYS[by](run), run.counted_j
        return
    names = {gpu.uuid: gpu.name for gpu in run.gpus}
    for name in dict.fromkeys(names.values()) or ("",):
        yield name, math.fsum(joules for uuid, joules in run.own_j.items() if names[uuid] == name)


def _total(group: str, some: list[tuple[Run, float]]) -> Total:
    jobs = [run for run, _ in some if not run.holds_runs]
    return Total(
        group=group,
        jobs=len(jobs),
        not_finished=sum(run.status in _NOT_FINISHED for run in jobs),
        unmeasured=sum(run.energy_j is None for run in jobs),
        energy_j=math.fsum(energy_j for _, energy_j in some),
        wasted_j=math.fsum(energy_j for run, energy_j in some if run.status in _NOT_FINISHED and not run.holds_runs),
    )
