"""Passes hold the samples of their batches in order, with weights that make the same sum of losses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from energy_plugins.errors import BatchError
from energy_plugins.training.micro_batch.both_ways import both_ways
from energy_plugins.training.micro_batch.passes import Pass, passes
from energy_plugins.training.micro_batch.plan import MicroBatchPlan, sizes

PLANS = st.tuples(st.integers(1, 12), st.integers(1, 6)).flatmap(
    lambda setting: st.sampled_from(sizes(*setting)).map(lambda size: MicroBatchPlan(*setting, size))
)


def rows(*lengths: int) -> list[torch.Tensor]:
    values = torch.randn(sum(lengths), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return list(values.split(lengths))


def together(plan: MicroBatchPlan, window: list[torch.Tensor], *, adds_up: bool) -> list[Pass]:
    groups = [window[first : first + plan.together] for first in range(0, len(window), plan.together)]
    return [one for group in groups for one in passes(group, plan, adds_up=adds_up)]


@given(plan=PLANS, short=st.integers(0, 12), cut_short=st.integers(0, 6), adds_up=st.booleans())
def test_the_losses_of_a_window_add_up_to_what_they_were(
    plan: MicroBatchPlan, short: int, cut_short: int, *, adds_up: bool
) -> None:
    last = min(max(plan.batch - short, 1), plan.batch)
    window = rows(*[plan.batch] * max(plan.accumulation - 1 - cut_short, 0), last)
    found = together(plan, window, adds_up=adds_up)
    assert torch.equal(torch.cat([one.batch for one in found]), torch.cat(window))

    def loss(batch: torch.Tensor) -> torch.Tensor:
        return batch.square().sum() if adds_up else batch.square().sum() / len(batch)

    expected = torch.stack([loss(batch) for batch in window]).sum()
    assert torch.stack([loss(one.batch) * one.weight for one in found]).sum().item() == pytest.approx(expected.item())
    assert max(len(one.batch) for one in found) <= max(plan.size + (plan.size > 1), plan.batch)


@given(plan=PLANS, samples=st.integers(2, 40))
def test_no_part_of_several_is_a_sample_alone(plan: MicroBatchPlan, samples: int) -> None:
    parts = passes(rows(samples), plan, adds_up=False)
    assert plan.size == 1 or min(len(one.batch) for one in parts) > 1


def test_what_does_not_go_together_runs_as_it_came() -> None:
    plan = MicroBatchPlan(2, 2, 4)
    unequal = [torch.ones(2, 3), torch.ones(2, 5)]
    assert passes(unequal, plan, adds_up=True) == [Pass(one, last=one) for one in unequal]
    odd = [{"text": "a"}]
    assert passes(odd, MicroBatchPlan(2, 2, 1), adds_up=True) == [Pass(odd[0], last=odd[0])]


class TestBothWays:
    def test_as_much_of_a_batch_is_compared_as_fits(self) -> None:
        model, seen = torch.nn.Linear(2, 1).double(), list[int]()

        def run(each: object) -> None:
            assert isinstance(each, list)
            for one in each:
                if len(one.batch) > 4:
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                seen.append(len(one.batch))
                (model(one.batch).square().mean() * one.weight).backward()

        check = both_ways([model], rows(8), MicroBatchPlan(8, 1, 2), run, adds_up=False, precision=None)
        assert check is not None
        assert check.agrees
        assert seen == [4, 2, 2]

    def test_a_window_that_is_cut_short_tells_nothing(self) -> None:
        plan = MicroBatchPlan(4, 2, 8)
        for window in (rows(4), rows(4, 3)):
            assert both_ways([], window, plan, lambda _: None, adds_up=True, precision=None) is None

    def test_batches_that_do_not_go_together_are_an_error(self) -> None:
        window = [torch.ones(2, 3), torch.ones(2, 5)]
        with pytest.raises(BatchError, match="do not go together: pad them to one length"):
            both_ways([], window, MicroBatchPlan(2, 2, 4), lambda _: None, adds_up=True, precision=None)

    def test_what_never_fits_is_an_error(self) -> None:
        def run(each: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory.")

        with pytest.raises(torch.OutOfMemoryError):
            both_ways([torch.nn.Linear(2, 1)], rows(8), MicroBatchPlan(8, 1, 2), run, adds_up=True, precision=None)
