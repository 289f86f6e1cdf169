"""Following a training that is under way: nothing of it changes, and what cannot be followed is named in good time."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.testing._internal.two_tensor import TwoTensor

from energy_plugins.errors import ConfigError
from energy_plugins.measure.rank_part import Rank
from energy_plugins.training.all_ranks import AllRanks
from energy_plugins.training.micro_batch.foreseen import Foreseen, together
from energy_plugins.training.working_set.followed import TrainingStep, followed
from energy_plugins.tune import WorkingSet


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Dropout(0.5), nn.Linear(32, 4))


def test_a_training_in_the_middle_does_not_know_of_it() -> None:
    model, batch = network(), torch.randn(6, 8)
    optimizer = torch.optim.AdamW(model.parameters())
    model(batch).sum().backward()
    optimizer.step()
    steps: list[object] = []
    hook = register_optimizer_step_post_hook(lambda *_: steps.append(1))
    try:
        before = _state(model, optimizer)
        found = followed(TrainingStep(model=model, batch=batch, optimizers=[optimizer]))
        assert _state(model, optimizer) == before
        assert not steps
    finally:
        hook.remove()
    assert found == WorkingSet.of(model, batch, optimizer)


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    gradients = [None if one.grad is None else one.grad.tolist() for one in model.parameters()]
    tensors = [one.tolist() for one in model.state_dict().values()]
    states = [[value.tolist() for value in state.values()] for state in optimizer.state.values()]
    chance = [torch.random.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())]  # noqa: NPY002
    return [tensors, gradients, states, chance]


class Looks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.layer(x) * (2.0 if float(x.sum()) > 0 else 1.0))


class Stubborn(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        raise RuntimeError("not now")


def packed() -> nn.Module:
    model = nn.Linear(8, 1)
    model.weight = nn.Parameter(TwoTensor(model.weight.detach(), model.weight.detach()))
    return model


@pytest.mark.parametrize(
    ("make", "seconds", "why"),
    [
        (Looks, 10.0, "without data the model cannot be followed"),
        (packed, 10.0, r"parameters are sharded, or packed in another way \(.*TwoTensor"),
        (network, 0.0, "to follow the model takes more than 0 s"),
    ],
)
def test_what_cannot_be_followed_says_why(make: Callable[[], nn.Module], seconds: float, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        followed(TrainingStep(model=make(), batch=torch.ones(4, 8)), most_s=seconds)


def test_an_optimizer_of_which_nothing_is_known_is_a_reason() -> None:
    model = network()
    step = TrainingStep(model=model, batch=torch.ones(4, 8), optimizers=[Stubborn(model.parameters(), lr=0.1)])
    with pytest.raises(ConfigError, match="step cannot be traced: RuntimeError: not now"):
        followed(step)


def test_several_optimizers_add_up() -> None:
    model = network()
    halves = [torch.optim.AdamW(part.parameters()) for part in (model[0], model[3])]
    one = followed(TrainingStep(model=model, batch=torch.ones(4, 8), optimizers=halves))
    assert one.optimizer_state_bytes == 2 * 4 * (8 * 32 + 32 + 32 * 4 + 4) + 4 * 4


ALONE = Foreseen((4, 8, 16, 32), 16, ("L1", "L2", "L2", "HBM"))


def heard(*each: Foreseen | None) -> list[Foreseen | None]:
    """Return what ranks make of what each foresees, None where one foresees nothing."""
    barrier = Barrier(len(each))
    said: list[tuple[float, ...]] = [()] * len(each)

    def of_rank(rank: int) -> Foreseen | None:
        def summed(values: tuple[float, ...]) -> tuple[float, ...]:
            said[rank] = values
            barrier.wait()
            return tuple(map(sum, zip(*said, strict=True)))

        own = each[rank]
        ranks = AllRanks(Rank(rank=rank, world_size=len(each)), summed)
        return together(ranks, own or Foreseen((4, 8, 16, 32, 64)), is_known=own is not None)

    with ThreadPoolExecutor(len(each)) as threads:
        return list(threads.map(of_rank, range(len(each))))


def test_rank_0_says_what_is_tried_and_the_one_with_least_memory_how_far() -> None:
    assert heard(ALONE) == [ALONE]
    less = Foreseen((4, 8, 16), 8, ("L1", "L1", "L2"))
    assert heard(ALONE, less) == [Foreseen((4, 8, 16), 8, ("L1", "L2", "L2"))] * 2
    assert heard(less, ALONE) == [Foreseen((4, 8, 16), 8, ("L1", "L1", "L2"))] * 2


def test_what_one_rank_does_not_know_none_goes_by() -> None:
    assert heard(ALONE, None) == [None, None]
