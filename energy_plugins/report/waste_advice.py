"""Advice on what is drawn while GPUs wait or have too little to do. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from energy_plugins.measure.quantity import percent, quantity
from energy_plugins.measure.report import Report
from energy_plugins.measure.spans import Kind
from energy_plugins.report.advice_item import WORTH_SAYING, Advice, Sums
from energy_plugins.report.worker_advice import more_workers


def data_wait(sums: Sums) -> Iterator[Advice]:
    """Waiting for the loader: how many workers would keep up."""
    joules = sums.data_wait_j
    if joules is None or not sums.worth(joules):
        return
    wait_s, work_s = _wait_and_work_s(sums.report)
    remedy, evidence = "let more loader workers (num_workers) prepare batches ahead", ""
    if wait_s is not None and work_s is not None:
        evidence = f"; a step waited {quantity(wait_s, 's')} for its batch and worked {quantity(work_s, 's')}"
        if work_s > 0 and "num_workers" in sums.report.config:
            remedy = more_workers(sums.report.config["num_workers"], wait_s, work_s)
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


def stall(sums: Sums) -> Iterator[Advice]:
    """Nothing queued, for another reason than data."""
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


def underfilled(sums: Sums) -> Iterator[Advice]:
    """Steps too small for the GPU."""
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


def peer_wait(sums: Sums) -> Iterator[Advice]:
    """Ranks that wait for a slower one."""
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
