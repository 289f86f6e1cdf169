"""Which sizes are compared, and of how many batches, where ranks have unequal windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from energy_plugins.config import MicroBatchConfig
from energy_plugins.training.micro_batch.allowed_sizes import AllowedSizes, thinned
from energy_plugins.training.micro_batch.comparisons import Comparisons
from energy_plugins.training.micro_batch.foreseen import Foreseen
from energy_plugins.training.micro_batch.gradient_check import GradientCheck
from energy_plugins.training.micro_batch.own_sizes import OwnSizes
from energy_plugins.training.micro_batch.plan import MicroBatchPlan


@given(
    sizes=st.lists(st.integers(1, 10_000), min_size=1, max_size=20, unique=True).map(sorted),
    place=st.integers(0, 19),
    most=st.integers(2, 8),
)
def test_the_users_size_and_the_largest_are_always_among_those_that_are_left(
    sizes: list[int], place: int, most: int
) -> None:
    batch = sizes[place % len(sizes)]
    kept = thinned(sizes, batch, most)
    assert len(kept) == min(most, len(sizes))
    assert kept == sorted(set(kept) & set(sizes))
    assert {batch, sizes[-1]} <= set(kept)
    if batch == sizes[-1]:
        assert sizes[0] in kept


def test_the_others_lie_evenly_between() -> None:
    powers = [2**exponent for exponent in range(9)]
    assert thinned(powers, 8, 4) == [8, 32, 128, 256]
    assert thinned(powers, 256, 4) == [1, 16, 64, 256]


class TwoRanks:
    """Of which the other has fewer whole batches in its windows, and says else what this one says."""

    def __init__(self, others: int) -> None:
        self.others = others

    def hear(self, own: Sequence[float]) -> list[tuple[float, ...]]:
        return [tuple(own), (float(self.others),) if len(own) == 1 else tuple(own)]


def compared_batches(others: int) -> list[int]:
    """Return of how many batches each comparison was."""
    seen: list[int] = []

    def compare(group: Sequence[Any], plan: MicroBatchPlan) -> GradientCheck:
        seen.append(len(group))
        return GradientCheck(1e-8, 1e-5)

    ranks: Any = TwoRanks(others)
    found = AllowedSizes(
        MicroBatchConfig(),
        ranks,
        Comparisons(OwnSizes(None), allow_batch_statistics=False),
        lambda _: Foreseen((2, 4)),
        why_not="",
        most_sizes=8,
    )
    for _ in range(25):
        found.look(4, 3, compare, [torch.ones(4, 1)] * 3)
    assert found.may_change is (others > 0)
    return seen


def test_no_rank_compares_more_batches_than_another_has() -> None:
    """Their passes may speak with each other."""
    assert compared_batches(3) == [2] * 3
    assert compared_batches(1) == [1] * 3
    assert compared_batches(0) == []
