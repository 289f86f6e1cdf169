"""Whether another micro-batch leaves the gradients alone: one window of real samples, run both ways."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch

from energy_plugins.training.micro_batch.as_it_was import clear_gradients, left_as_it_was
from energy_plugins.training.micro_batch.collectives import collectives
from energy_plugins.training.micro_batch.in_float32 import can_be_exact, in_float32
from energy_plugins.training.micro_batch.out_of_memory import free_caches, is_out_of_memory
from energy_plugins.training.micro_batch.stilled import Stilled, without_batch_statistics

LIMITS = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""The most that rounding may do to a gradient, as a share of its norm. Ours: some hundred roundings of the sums in
float32, a few of each element below it; a loss that is a mean over unequal numbers of tokens is off by far more."""

EXACT = (1e-3, 1e-2)
"""The least and the most that rounding may do in float32 to gradients of passes that compute in less. Ours, from a
ResNet-50 with GroupNorm on noise, an H200: where gradients of samples nearly cancel, 0.12 in bfloat16 and 0.0016 in
float32 of what is left. Its ReLUs let roundings through by their square roots, as each turns some on or off."""
_FINER = 32
"""Between these, times that a difference is smaller in float32 if it is rounding: about 2^8 by square roots of 2^16.
One that is none stays as it is."""
_CHEAP_S = 2.0
"""Passes that took no longer are run in float32 in any case, which may take ten times as long; longer ones only where
they do not agree."""

_AS_LONG = 0.1
"""Share by which a gradient is longer that is no matter of rounding. Ours: batches are cut and joined by 2 or more."""
_SHORT = 1e-4
"""Shorter ones are none at all, rather than a share of what they were. Ours: nobody cuts a batch into more parts."""
_ROUNDING = 1e-6
"""Of what is left when squares of about the same size are subtracted, as a share. Ours."""

Way = Callable[[], object]
"""Runs a model on the samples of a window, and leaves the gradients in its parameters."""


@dataclass(frozen=True)
class GradientCheck:
    """How far the gradients of one window are apart, run in two ways."""

    difference: float
    """Norm of the difference as a share of the gradient's norm; NaN if one was not finite, or all are zero."""
    limit: float
    """From which on it is not rounding."""
    factor: float | None = None
    """How many times as long the gradient would be, where nothing else differs but what statistics of a batch explain;
    None if it is about as long, or if more differs."""
    samples: int | None = None
    """So many of each batch were compared, because more do not fit into memory; None for all."""
    speaks: bool = False
    """Whether the passes spoke with other ranks."""

    @property
    def agrees(self) -> bool:
        """Whether they are the same, but for rounding."""
        return self.difference <= self.limit

    @property
    def is_known(self) -> bool:
        """Whether there was something to compare: gradients may overflow, or be zero where a loss says nothing."""
        return not math.isnan(self.difference)

    @property
    def why_not(self) -> str:
        """A sentence that says why the micro-batch must stay, empty if it need not."""
        if self.agrees:
            return ""
        if not self.is_known:
            return "the gradients are zero or not finite, so nothing can be compared"
        longer = "" if self.factor is None else f", being {self.factor:.3g} times as long"
        return (
            f"the gradients would not be the same: they differ by {self.difference:.2g} of their norm{longer}, and "
            f"rounding explains {self.limit:.0e}; a loss must be a mean over samples that do not know of each other"
        )


def compare(model: torch.nn.Module, usual: Way, other: Way, *, limit: float) -> GradientCheck:
    """Run both ways, and return how far their gradients are apart; ``model`` is left as it was.

    Random numbers are made the same for all samples (`Stilled`), and what is compiled runs uncompiled, so that the
    check costs no compilation. The gradients of the first way are kept in the host's memory. Passes that compute in
    less than float32 run in float32, too, and then those decide: see `EXACT`.

    Args:
        model: holds all parameters that are trained.
        usual: what the training does anyway.
        other: what it might do instead; of the same samples.
        limit: see `LIMITS`.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with left_as_it_was(model), uncompiled(), Stilled():
        began_s = time.monotonic()
        found = _judged(model, parameters, usual, other, limit)
        if found.speaks:  # ranks decide for themselves whether to run it in float32: some would wait for others
            return found
        is_cheap = time.monotonic() - began_s <= _CHEAP_S
        if limit > EXACT[0] and found.is_known and (is_cheap or not found.agrees) and can_be_exact(parameters):
            return _exactly(model, parameters, usual, other, found.difference) or found
        return found


def _judged(
    model: torch.nn.Module, parameters: Sequence[torch.nn.Parameter], usual: Way, other: Way, limit: float
) -> GradientCheck:
    """Compare them, and say of those that differ whether one is only longer."""
    found = _compared(parameters, usual, other, limit)
    if found.agrees or not found.is_known or found.factor is not None:
        return found
    with without_batch_statistics(model) as layers:
        # If batches' statistics explain that it differs, they may hide that it is also longer.
        return replace(found, factor=_compared(parameters, usual, other, limit).factor) if layers else found


def _exactly(
    model: torch.nn.Module, parameters: Sequence[torch.nn.Parameter], usual: Way, other: Way, difference: float
) -> GradientCheck | None:
    """Return what float32 says; None if the model does not run in it, or not in the memory that there is.

    ``difference`` is what there was in the model's own precision.
    """
    least, most = EXACT
    try:
        with in_float32():
            found = _judged(model, parameters, usual, other, min(max(difference / _FINER, least), most))
    except (RuntimeError, MemoryError, TypeError, ValueError) as error:  # a kernel that takes halves only, for example
        is_too_large = is_out_of_memory(error)
    else:
        return found if found.is_known else None
    if is_too_large:
        free_caches()
    return None


def _compared(parameters: Sequence[torch.nn.Parameter], usual: Way, other: Way, limit: float) -> GradientCheck:
    clear_gradients(parameters)
    usual()
    expected = [None if one.grad is None else one.grad.detach().to("cpu", copy=True) for one in parameters]
    clear_gradients(parameters)
    begun = collectives()  # not before the first pass: DistributedDataParallel may arrange its buckets anew in that
    other()
    difference, factor = _difference(parameters, expected, limit)
    return GradientCheck(difference, limit, factor, speaks=collectives() != begun)


def limit_of(model: torch.nn.Module, precision: torch.dtype | None = None) -> float:
    """Return the limit for a model whose passes compute in ``precision``, if not in that of its parameters."""
    types = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    types |= {precision} if precision is not None else set()
    loosest = max((LIMITS.get(one, max(LIMITS.values())) for one in types), default=LIMITS[torch.float32])
    on_gpu = any(parameter.is_cuda for parameter in model.parameters())
    # TF32 has the mantissa of float16, and convolutions use it unless told otherwise.
    return max(loosest, LIMITS[torch.float16]) if on_gpu and _uses_tf32() and torch.float64 not in types else loosest


def _difference(
    parameters: Sequence[torch.nn.Parameter], expected: Sequence[torch.Tensor | None], limit: float
) -> tuple[float, float | None]:
    """Return how far gradients are apart as a share of those expected, and the factor if that is all."""
    apart, whole, along = 0.0, 0.0, 0.0
    for parameter, before in zip(parameters, expected, strict=True):
        now = parameter.grad
        if before is not None:
            there = before.to(parameter.device).double()
            whole += float(there.square().sum())
            apart += float(there.square().sum() if now is None else (now.double() - there).square().sum())
            along += 0.0 if now is None else float((now.double() * there).sum())
        elif now is not None:
            apart += float(now.double().square().sum())
    if not math.isfinite(whole) or not math.isfinite(apart):
        return math.nan, None
    if not whole:
        return (math.inf if apart else math.nan), None
    difference, factor = math.sqrt(apart / whole), along / whole
    # By Pythagoras: the difference along the gradient, and what is left of it across.
    across = math.sqrt(max(difference**2 - (factor - 1) ** 2, 0.0))
    is_scaled = factor > _SHORT and abs(factor - 1) > _AS_LONG and across <= max(limit, _ROUNDING * difference)
    return difference, factor if is_scaled else None


def _uses_tf32() -> bool:
    return torch.get_float32_matmul_precision() != "highest" or torch.backends.cudnn.allow_tf32


def uncompiled() -> AbstractContextManager[object]:
    """Return a context in which compiled models run as they were written; torch has it from 2.6 on."""
    return torch.compiler.set_stance("force_eager") if hasattr(torch.compiler, "set_stance") else nullcontext()
