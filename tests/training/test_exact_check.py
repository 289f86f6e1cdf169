"""Gradients of passes that compute in less than float32 are compared in float32, which tells rounding from a fault."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from energy_plugins.training.micro_batch.gradient_check import EXACT, LIMITS, GradientCheck, compare
from energy_plugins.training.micro_batch.in_float32 import in_float32

SAMPLES = 64
BFLOAT16 = LIMITS[torch.bfloat16]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def deep() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(32, 32), nn.LayerNorm(32), nn.ReLU())])


def check(model: nn.Module, loss: Loss, *, cast: type[torch.Tensor] | None = None, size: int = 4) -> GradientCheck:
    """Run a loss on all samples at once and in parts, both in autocast, and compare their gradients."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, 32, generator=generator)
    labels = torch.randint(0, 32, (SAMPLES,), generator=generator)

    def passes(parts: int) -> None:
        for some, answers in zip(x.chunk(parts), labels.chunk(parts), strict=True):
            with torch.autocast("cpu", torch.bfloat16):
                y = model(some.bfloat16() if cast else some)
                (loss(y.float(), answers) / parts).backward()

    return compare(model, lambda: passes(1), lambda: passes(SAMPLES // size), limit=BFLOAT16)


def test_rounding_of_what_nearly_cancels_is_no_difference() -> None:
    model = nn.Linear(32, 32, bias=False)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 32, generator=generator) + 1e-2 * torch.randn(SAMPLES, 32, generator=generator)
    weights = 1e-3 + torch.where(torch.arange(SAMPLES) < SAMPLES // 2, 1.0, -1.0)[:, None]

    def passes(parts: int) -> None:
        for some, weight in zip(x.chunk(parts), weights.chunk(parts), strict=True):
            with torch.autocast("cpu", torch.bfloat16):
                ((weight * model(some).float()).mean() / parts).backward()

    def both() -> GradientCheck:
        return compare(model, lambda: passes(1), lambda: passes(16), limit=BFLOAT16)

    found = both()
    assert found.agrees
    assert EXACT[0] <= found.limit <= EXACT[1]
    assert found.difference < 1e-4
    model.register_parameter("of_less", nn.Parameter(torch.zeros(1, dtype=torch.bfloat16)))
    assert both().difference > BFLOAT16  # what bfloat16 alone says of the same


def test_a_small_difference_is_found_that_bfloat16_would_hide() -> None:
    def loss(y: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        weights = 1 + 0.02 * (labels > 16)  # parts have other sums of weights, by a percent or so
        return (functional.cross_entropy(y, labels, reduction="none") * weights).sum() / weights.sum()

    found = check(deep(), loss)
    assert EXACT[0] < found.difference < BFLOAT16
    assert not found.agrees
    assert "rounding explains 1e-03" in found.why_not


def test_a_model_that_does_not_run_in_float32_is_judged_in_its_own_precision() -> None:
    found = check(deep(), functional.cross_entropy, cast=torch.Tensor)
    assert found.limit == BFLOAT16
    assert found.agrees


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("halves only")])
def test_one_that_fails_in_float32_is_judged_in_its_own_precision(error: Exception) -> None:
    def loss(y: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if not torch.is_autocast_enabled("cpu"):
            raise error
        return functional.cross_entropy(y, labels)

    found = check(deep(), loss)
    assert found.limit == BFLOAT16
    assert found.agrees


def test_precisions_are_as_they_were() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            a = torch.ones(2, 2)
            with in_float32():
                assert (a @ a).dtype is torch.float32
                with torch.autocast("cpu", torch.bfloat16):
                    assert (a @ a).dtype is torch.float32
                assert torch.get_float32_matmul_precision() == "highest"
                assert not torch.backends.cudnn.allow_tf32
            assert (a @ a).dtype is torch.bfloat16
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32 == before[1]
    finally:
        torch.set_float32_matmul_precision(before[0])
