"""The figures of one run that exporters are given: what its collector has published, and nothing that asks a driver."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from energy_plugins.measure.report import Report
    from energy_plugins.measure.run import Run


@dataclass(frozen=True, kw_only=True)
class GpuFigures:
    """One GPU of a run; None is not known."""

    uuid: str
    index: int
    """The driver's."""
    name: str
    driver: str
    energy_j: float | None
    """Since the run began."""
    power_w: float | None
    limit_w: float | None
    """The power limit in force."""


@dataclass(frozen=True, kw_only=True)
class RunFigures:
    """A run as far as it is known, a second or so late; energies in joules since it began, None is not known."""

    run_id: str
    name: str
    node: str
    rank: int
    world_size: int
    simulated: bool
    started: str
    """Wall time, ISO 8601."""
    measured_s: float
    """Up to when it is known, from its start."""
    gpus: tuple[GpuFigures, ...]
    steps: int
    step_s: float
    step_j: float
    samples: int | None
    tokens: int | None
    data_wait_j: float
    stall_j: float
    complete: bool = False
    """Whether the run has ended, so that these are its last figures."""

    @property
    def energy_j(self) -> float | None:
        """Of the GPUs that have told any."""
        known = [gpu.energy_j for gpu in self.gpus if gpu.energy_j is not None]
        return sum(known) if known else None


def figures_of(run: Run) -> RunFigures:
    """Return what the collector of ``run`` has published last. It waits for nothing; from any thread."""
    live, facts = run.live(), run.facts
    limits_w = run.limits_w
    told = live.t_ns > run.start_ns
    gpus = tuple(
        GpuFigures(
            uuid=gpu.uuid,
            index=gpu.index,
            name=gpu.name,
            driver=gpu.driver,
            energy_j=_known(live.gpu_j[row]) if told else None,
            power_w=_known(live.gpu_power_w[row]),
            limit_w=_known(limits_w[row]),
        )
        for row, gpu in enumerate(run.gpus)
    )
    return RunFigures(
        run_id=facts.run_id,
        name=_utf8(facts.name),
        node=_utf8(facts.node),
        rank=0 if facts.rank is None else facts.rank.rank,
        world_size=1 if facts.rank is None else facts.rank.world_size,
        simulated=facts.plan.simulated,
        started=facts.started,
        measured_s=max(live.t_ns - run.start_ns, 0) * 1e-9,
        gpus=gpus,
        steps=live.steps,
        step_s=live.step_s,
        step_j=_known(live.step_j) or 0.0,
        samples=live.samples or None,
        tokens=live.tokens or None,
        data_wait_j=_known(live.data_wait_j) or 0.0,
        stall_j=_known(live.stall_j) or 0.0,
    )


def last_figures_of(run: Run, report: Report) -> RunFigures:
    """Return the figures of a run that has ended, as its report has them; it keeps no sum of the steps."""
    before, work = figures_of(run), report.work
    return replace(
        before,
        measured_s=report.duration_s,
        gpus=tuple(replace(gpu, energy_j=report.gpu_j.get(gpu.uuid)) for gpu in before.gpus),
        steps=work.steps,
        samples=work.samples,
        tokens=work.tokens,
        data_wait_j=report.data_wait_j or 0.0,
        stall_j=report.stall_j or 0.0,
        complete=True,
    )


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _utf8(text: str) -> str:
    """Return text that can be encoded: a name from a command line may hold bytes that are none."""
    return text.encode("utf-8", "replace").decode("utf-8")
