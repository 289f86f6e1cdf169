"""Plans keep a rank's samples of an optimizer step, whatever they do with them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_plugins.errors import BatchError
from energy_plugins.training.micro_batch.plan import MicroBatchPlan, sizes


@given(batch=st.integers(1, 96), accumulation=st.integers(1, 24), data=st.data())
def test_every_possible_size_makes_whole_passes_of_whole_batches(
    batch: int, accumulation: int, data: st.DataObject
) -> None:
    possible = sizes(batch, accumulation)
    assert list(possible) == sorted(set(possible))
    assert {1, batch, batch * accumulation} <= set(possible)
    plan = MicroBatchPlan(batch, accumulation, data.draw(st.sampled_from(possible)))
    assert plan.passes * plan.size == plan.share == batch * accumulation
    assert 1 in {plan.parts, plan.together}
    assert plan.parts * plan.size == batch * plan.together
    assert accumulation % plan.together == 0
    assert plan.is_users == (plan.size == batch)


def test_both_directions() -> None:
    split, merged = MicroBatchPlan(128, 1, 32), MicroBatchPlan(8, 16, 128)
    assert (split.parts, split.together, split.passes) == (4, 1, 4)
    assert (merged.parts, merged.together, merged.passes) == (1, 16, 1)


@pytest.mark.parametrize(("batch", "accumulation", "size"), [(8, 4, 3), (8, 4, 24), (8, 4, 64), (8, 1, 16), (6, 1, 0)])
def test_what_does_not_fit_is_refused_with_what_would(batch: int, accumulation: int, size: int) -> None:
    with pytest.raises(BatchError, match=f"micro-batch of {size} does not fit {accumulation} batches of {batch}.*1, 2"):
        MicroBatchPlan(batch, accumulation, size)


def test_no_batch_is_no_step() -> None:
    with pytest.raises(BatchError, match="must be 1 or more"):
        sizes(0, 4)
