"""The check of gradients finds whatever depends on the micro-batch, believes the rest, and leaves no trace."""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from energy_plugins.training.micro_batch.batch_tree import cut
from energy_plugins.training.micro_batch.gradient_check import LIMITS, GradientCheck, compare, limit_of

Loss = Callable[[nn.Module, torch.Tensor], torch.Tensor]
SAMPLES = 8


def square(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(model(x)).square().mean()


def tokens(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A mean over labels, of which samples have unequal numbers."""
    labels = (x.sum(1) > 0).long()
    labels[x[:, 0] > 0.3] = -100
    return functional.cross_entropy(model(x), labels, ignore_index=-100)


def token_sum(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The same, by the number of samples."""
    labels = (x.sum(1) > 0).long()
    labels[x[:, 0] > 0.3] = -100
    return functional.cross_entropy(model(x), labels, ignore_index=-100, reduction="sum") / len(x)


def contrastive(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    z = functional.normalize(model(x), dim=1)
    return functional.cross_entropy(z @ z.T / 0.1, torch.arange(len(x)))


def noisy(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """As a diffusion model's: a time and a noise for each sample."""
    time = torch.randint(1, 10, (len(x),)) / 10
    noise = torch.randn_like(x) * torch.rand(len(x), 1)
    return torch.as_tensor(model(x + time[:, None] * noise)).square().mean()


def mixed_up(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(model(x + 0.5 * x[torch.randperm(len(x))])).square().mean()


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)
        self.out = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, :, None].expand(-1, -1, 4)
        attended, _ = self.attention(x, x, x, need_weights=False)
        other = functional.scaled_dot_product_attention(attended, attended, attended, None, 0.5)
        return torch.as_tensor(self.out(other.mean(1)))


def layers(*more: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), *more, nn.Tanh(), nn.Linear(16, 2))


def check(model: nn.Module, loss: Loss, size: int = 2) -> GradientCheck:
    x = torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(1))

    def whole() -> None:
        loss(model, x).backward()

    def in_parts() -> None:
        for chunk in cut(x, size):
            (loss(model, chunk) * len(chunk) / len(x)).backward()

    return compare(model, whole, in_parts, limit=limit_of(model))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("make", "loss"),
    [
        (layers, square),
        (layers, token_sum),
        (layers, noisy),
        (lambda: layers(nn.Dropout(0.5), nn.LayerNorm(16), nn.AlphaDropout(0.3)), square),
        (Attends, square),
    ],
)
def test_means_over_samples_are_believed(make: Callable[[], nn.Module], loss: Loss, size: int) -> None:
    found = check(make(), loss, size)
    assert found.difference < 1e-6
    assert found.agrees
    assert not found.why_not


@pytest.mark.parametrize(
    ("make", "loss"),
    [(layers, tokens), (layers, contrastive), (layers, mixed_up), (lambda: layers(nn.BatchNorm1d(16)), square)],
)
def test_what_depends_on_the_micro_batch_is_found_with_its_number(make: Callable[[], nn.Module], loss: Loss) -> None:
    found = check(make(), loss)
    assert not found.agrees
    assert found.difference > 0.01
    assert f"differ by {found.difference:.2g} of their norm" in found.why_not


def test_double_precision_is_held_to_more() -> None:
    assert check(layers().double(), lambda model, x: square(model, x.double())).difference < 1e-13
    assert limit_of(layers().double()) == LIMITS[torch.float64]
    assert limit_of(layers(), torch.bfloat16) == LIMITS[torch.bfloat16]
    assert limit_of(layers()) == LIMITS[torch.float32]


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_as_it_was(fails: bool) -> None:
    model = layers(nn.BatchNorm1d(16), nn.Dropout(0.5))
    square(model, torch.randn(8, 4)).backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    values = [one.clone() for one in gradients if one is not None]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002

    def draws(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        random.random()
        np.random.rand()  # noqa: NPY002
        torch.rand(3)
        loss = square(model, x)
        if fails and len(x) < SAMPLES:
            raise torch.OutOfMemoryError("too much")
        return loss

    if fails:
        with pytest.raises(torch.OutOfMemoryError):
            check(model, draws)
    else:
        check(model, draws)
    assert all(now.grad is before for now, before in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(one, before) for one, before in zip(gradients, values, strict=True) if one is not None)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # type: ignore[index]  # noqa: NPY002


def test_a_gradient_that_overflows_is_no_difference() -> None:
    found = check(layers(), lambda model, x: square(model, x) * math.inf)
    assert not found.is_known
    assert not found.agrees
    assert "not finite" in found.why_not


def test_gradients_that_are_zero_prove_nothing() -> None:
    """A loss with a margin may have nothing to say of a batch, and all the more of the next."""
    found = check(layers(), lambda model, x: square(model, x) * 0)
    assert not found.is_known
    assert not found.agrees
    assert "zero" in found.why_not


def test_parameters_that_get_no_gradient_differ_from_none() -> None:
    model = layers()

    def some(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return square(model, x) if len(x) == SAMPLES else square(model, x.detach()) * 0

    assert check(model, some).difference == pytest.approx(1)


def test_what_is_compiled_is_compared_without_compiling() -> None:
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        compiled.append(1)
        return graph.forward

    model = layers(nn.Dropout(0.5))
    run = torch.compile(model, backend=backend)
    assert check(model, lambda _, x: torch.as_tensor(run(x)).square().mean()).agrees
    assert not compiled


class Diary(nn.Module):
    """Keeps what modules keep, in all the places where they do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = layers()
        self.calls = 0
        self.last: torch.Tensor | None = None
        self.losses = {"train": [1.0], "all": deque([1.0], maxlen=3)}
        self.names = {"a"}
        self.itself: list[object] = [self.losses]
        self.itself.append(self.itself)
        self.counts = Counter(steps=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.last = self.inner(x)
        self.losses["train"].append(2.0)
        self.losses["all"].append(2.0)
        self.losses["new"] = [3.0]
        self.names.add("b")
        self.counts["steps"] += 1
        self.cache = 1
        return self.last


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_module_keeps_is_as_it_was(fails: bool) -> None:
    model = Diary()
    kept = model.losses

    def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        found = square(model, x)
        if fails:
            raise ValueError("no")
        return found

    if fails:
        with pytest.raises(ValueError, match="no"):
            check(model, loss)
    else:
        check(model, loss)
    assert (model.calls, model.last, model.names, model.counts) == (0, None, {"a"}, {"steps": 2})
    assert model.losses is kept
    assert kept == {"train": [1.0], "all": deque([1.0])}
    assert not hasattr(model, "cache")


@pytest.mark.parametrize(("size", "factor"), [(4, 0.5), (2, 0.25)])
@pytest.mark.parametrize("norm", [False, True])
def test_a_gradient_of_another_length_is_told_from_one_that_statistics_change(
    size: int, factor: float, norm: bool
) -> None:
    def sum_(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return square(model, x) * len(x)

    model = layers(nn.BatchNorm1d(16)) if norm else layers()
    assert check(model, sum_, size).factor == pytest.approx(factor, rel=1e-4)
    assert check(model, square, size).factor is None
    assert check(model, contrastive, size).factor is None
    assert all(module.training for module in model.modules())
