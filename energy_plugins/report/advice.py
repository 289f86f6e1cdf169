"""What would save joules in the next run, most joules first: rules over a report, each with its evidence. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from energy_plugins.measure.quantity import percent, quantity
from energy_plugins.measure.report import Report
from energy_plugins.measure.report_parts import KindTotal
from energy_plugins.measure.spans import Kind

WORTH_SAYING: Final = 0.01
"""Share of the total below which nothing is advised: less than what most sensors are off by."""
_CHECKPOINTS: Final = 0.02
"""Share from which on checkpoints are too many; some are needed."""
_OUTSIDE: Final = 0.05
"""Share from which on time outside of steps is worth a line; a start and an end are needed."""


@dataclass(frozen=True)
class Advice:
    """One thing to do."""

    topic: str
    """In a word or two."""
    energy_j: float | None
    """What it is about, in joules of this run: the most that it may save. None where only trying tells."""
    share: float | None
    """The same as a share of the total."""
    sentence: str
    evidence: str
    """What in the report says so."""


@dataclass(frozen=True)
class _Sums:
    """What the rules look at: of all ranks where they are known, else of this process."""

    report: Report
    whose: str
    total_j: float
    stall_j: float | None
    data_wait_j: float | None
    peer_wait_j: float | None
    steps: int

    @classmethod
    def of(cls, report: Report) -> _Sums | None:
        """Return them; None where no total is known."""
        ranks = report.ranks
        if ranks is not None and ranks.total_j is not None and len(ranks.rows) > 1:
            of_all = (ranks.total_j, ranks.stall_j, ranks.data_wait_j, ranks.peer_wait_j, ranks.steps)
            sums = cls(report, f"all {ranks.world_size} ranks' energy", *of_all)
        else:
            own = (report.stall_j, report.data_wait_j, report.peer_wait_j, report.work.steps)
            sums = cls(report, "this run's energy", report.total_j or 0.0, *own)
        return sums if 0.0 < sums.total_j < math.inf else None

    def about(self, topic: str, energy_j: float, was: str, remedy: str, evidence: str) -> Advice:
        """Return the advice: its share, what the joules ``was`` spent on, and what to do."""
        share = energy_j / self.total_j
        sentence = f"{percent(share)} of {self.whose} was {was}: {remedy}"
        return Advice(topic, energy_j, share, sentence, evidence)

    def worth(self, energy_j: float | None, least: float = WORTH_SAYING) -> bool:
        """Tell whether joules are known and many enough."""
        return energy_j is not None and least * self.total_j <= energy_j < math.inf


def advice(report: Report) -> tuple[Advice, ...]:
    """Return what to do, most joules first; nothing for a run whose joules are not known."""
    sums = _Sums.of(report)
    if sums is None:
        return ()
    found = [item for rule in _RULES for item in rule(sums)]
    return tuple(sorted(found, key=lambda item: -math.inf if item.energy_j is None else item.energy_j, reverse=True))


def _data_wait(sums: _Sums) -> Iterator[Advice]:
    joules = sums.data_wait_j
    if joules is None or not sums.worth(joules):
        return
    wait_s, work_s = _wait_and_work_s(sums.report)
    workers = sums.report.config.get("num_workers")
    remedy, evidence = "let more loader workers (num_workers) prepare batches ahead", ""
    if wait_s is not None and work_s is not None:
        evidence = f"; a step waited {quantity(wait_s, 's')} for its batch and worked {quantity(work_s, 's')}"
        if isinstance(workers, int) and work_s > 0:
            # What makes a batch in each period has to make one in the time that a step works.
            needed = max(workers + 1, math.ceil(max(workers, 1) * (wait_s + work_s) / work_s))
            remedy = f"num_workers {workers} -> {min(needed, 64)}"
        elif work_s > 0:
            remedy += f" until one is ready every {quantity(work_s, 's')}"
    yield sums.about(
        "data wait",
        joules,
        "spent waiting for data",
        remedy,
        f"data_wait_j: {quantity(joules, 'J')} while nothing was queued and the loader was asked{evidence}",
    )


def _wait_and_work_s(report: Report) -> tuple[float | None, float | None]:
    """Return how long a step waited for data on average, and how long it went on without that wait."""
    kinds = {kind.kind: kind for kind in report.kinds}
    wait, step = kinds.get(Kind.DATA_WAIT.value), kinds.get(Kind.STEP.value)
    if wait is None or step is None or not report.work.steps:
        return None, None
    inner_s = sum(kinds[name].duration_s for name in ("forward", "backward", "optimizer") if name in kinds)
    work_s = (step.duration_s + inner_s) / report.work.steps
    return wait.duration_s / report.work.steps, work_s


def _stall(sums: _Sums) -> Iterator[Advice]:
    if sums.stall_j is None:
        return
    joules = sums.stall_j - (sums.data_wait_j or 0.0)
    if sums.worth(joules):
        yield sums.about(
            "stall",
            joules,
            "drawn while nothing was queued, other than for data",
            "look for what the GPU waits for between steps: .item(), printing a loss, callbacks, logging in each step",
            f"stall_j less data_wait_j: {quantity(joules, 'J')} in {sums.steps:,} steps",
        )


def _underfilled(sums: _Sums) -> Iterator[Advice]:
    report = sums.report
    joules = report.underfilled_j
    if joules is None or report.total_j is None or not joules >= WORTH_SAYING * report.total_j > 0:
        return
    share = joules / report.total_j
    yield Advice(
        "underfilled",
        joules,
        share,
        f"{percent(share)} of this run's energy was drawn in steps that did not fill the GPU: a larger batch per GPU, "
        "torch.compile or CUDA graphs, or sharing the GPU",
        f"underfilled_j: {quantity(joules, 'J')}, an estimate ({report.underfilled_how})",
    )


def _peer_wait(sums: _Sums) -> Iterator[Advice]:
    joules, ranks = sums.peer_wait_j, sums.report.ranks
    if joules is None or ranks is None or not sums.worth(joules):
        return
    late = ", ".join(map(str, ranks.stragglers))
    slow = f"rank {late} comes last: look at its clocks, its data and its node" if late else "give the ranks equal work"
    yield sums.about(
        "peer wait",
        joules,
        "drawn waiting for other ranks",
        slow,
        f"peer_wait_j: {quantity(joules, 'J')}, by how much the ranks' backward phases differ",
    )


def _checkpoints(sums: _Sums) -> Iterator[Advice]:
    total = next((kind for kind in sums.report.kinds if kind.kind == Kind.CHECKPOINT.value), None)
    if total is None or total.energy_j is None or not _own_worth(sums.report, total.energy_j, _CHECKPOINTS):
        return
    each = f", {quantity(total.energy_j / total.count, 'J')} each" if total.count else ""
    share = total.energy_j / (sums.report.total_j or math.nan)
    yield Advice(
        "checkpoints",
        total.energy_j,
        share,
        f"{percent(share)} of this run's energy was drawn while checkpoints were written: write fewer, or in the "
        "background",
        f"checkpoint: {quantity(total.energy_j, 'J')} in {total.count:,} stretches{each}",
    )


def _outside(sums: _Sums) -> Iterator[Advice]:
    report = sums.report
    outside_j = _sum_j(kind for kind in report.kinds if kind.kind in ("unattributed", Kind.RUN.value, Kind.FIT.value))
    if outside_j is None:
        return
    joules = outside_j - (report.stall_j or 0.0)
    if not _own_worth(report, joules, _OUTSIDE):
        return
    share = joules / (report.total_j or math.nan)
    yield Advice(
        "idle",
        joules,
        share,
        f"{percent(share)} of this run's energy was drawn outside of steps, validation and checkpoints: start training "
        "sooner, end the process with it, and mark what else it does",
        f"energy of no such span: {quantity(outside_j, 'J')}, stalls between steps taken off",
    )


def _power_limit(sums: _Sums) -> Iterator[Advice]:
    part = sums.report.power_limit
    if part is None:
        yield Advice(
            "power limit",
            None,
            None,
            "no power limit was searched for: PowerLimitTuner (Lightning), PowerLimitCallback (transformers) or "
            "power_limit.enabled find the one of least energy",
            "the report has no section power_limit; what it would save, only trying tells",
        )
    elif part.advice and part.chosen is None:
        yield Advice("power limit", None, None, part.advice, part.why or "no limit could be set in this run")
    elif part.binding is False:
        yield Advice(
            "power limit",
            None,
            None,
            "the power limit in force lowers nothing and saves nothing: search for one that binds, or leave it out",
            f"{part.chosen:g} {part.unit} is above what was drawn"
            if part.chosen is not None
            else "it was found not to bind",
        )


def _own_worth(report: Report, joules: float, least: float) -> bool:
    total_j = report.total_j
    return total_j is not None and 0.0 < least * total_j <= joules < math.inf


def _sum_j(kinds: Iterator[KindTotal]) -> float | None:
    joules = [kind.energy_j for kind in kinds if kind.energy_j is not None]
    return math.fsum(joules) if joules else None


_RULES: Final[tuple[Callable[[_Sums], Iterator[Advice]], ...]] = (
    _data_wait,
    _stall,
    _underfilled,
    _peer_wait,
    _checkpoints,
    _outside,
    _power_limit,
)
