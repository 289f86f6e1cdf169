"""Counts of batches on a real GPU: right, and on their way without anybody waiting for them."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from energy_plugins.training.micro_batch.both_ways import both_ways
from energy_plugins.training.micro_batch.gradient_check import GradientCheck
from energy_plugins.training.micro_batch.later_checks import LaterChecks
from energy_plugins.training.micro_batch.passes import Pass
from energy_plugins.training.micro_batch.plan import MicroBatchPlan
from energy_plugins.training.micro_batch.sample_counts import SampleCounts

pytestmark = pytest.mark.hardware

PLAN = MicroBatchPlan(4, 1, 2)
WAITED_S = 0.02


def batch(*kept: int) -> dict[str, torch.Tensor]:
    ids = torch.arange(1, 9).repeat(len(kept), 1)
    return {"labels": ids.masked_fill(torch.arange(8) >= torch.tensor(kept)[:, None], -100).cuda()}


def keep_busy() -> None:
    """Queue about a tenth of a second of work."""
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(60):
        matrix = matrix @ matrix


def test_nobody_waits_and_what_comes_later_is_what_there_is() -> None:
    unequal = batch(8, 8, 8, 4)
    SampleCounts([unequal]).spreads([2, 2])  # kernels are loaded, and memory is pinned
    torch.cuda.synchronize()
    keep_busy()
    began_s = time.monotonic()
    counts = SampleCounts([unequal])
    assert time.monotonic() - began_s < WAITED_S
    assert not counts.is_here
    assert counts.spreads([2, 2])[0] == pytest.approx(0.25)
    host = SampleCounts([{"labels": unequal["labels"].cpu()}])
    assert host.is_here
    assert host.spreads([2, 2]) == pytest.approx(counts.spreads([2, 2]))


def test_a_mean_over_labels_is_found_when_the_next_batch_comes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 16)).cuda()

    def run(each: list[Pass]) -> None:
        for one in each:
            labels = one.batch["labels"]
            scores = model(labels.clamp(min=0)).transpose(1, 2)
            (nn.functional.cross_entropy(scores, labels, ignore_index=-100) * one.weight).backward()

    def compare(group: list[dict[str, torch.Tensor]], plan: MicroBatchPlan) -> GradientCheck | None:
        return both_ways([model], group, plan, run, adds_up=False, precision=None)  # type: ignore[arg-type]

    checks = LaterChecks()
    allowed = [
        checks.allow([each], PLAN, compare, step)  # type: ignore[arg-type]
        for step, each in enumerate([batch(8, 8, 8, 8), batch(8, 8, 8, 4), batch(8, 8, 8, 8)], 1)
    ]
    assert allowed == [True, True, False]
    assert checks.doubt is not None
    assert checks.doubt.steps == (2, 2)
    assert checks.doubt.difference > 0.01
