"""How much memory a step of a real training takes on a CPU, as torch's own allocator tells it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn

Loss = Callable[[], torch.Tensor]


def peak_bytes_of_a_step(
    loss: Loss,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    micro_batches: int = 1,
    autocast: torch.dtype | None = None,
) -> int:
    """Run optimizer steps, and return how far one that is not the first fills memory, by what torch's allocator says.

    The allocator's own account knows what kernels take for themselves, too. What is there before the step (parameters,
    buffers, the optimizer's state) is added; the batch is not.
    """

    def step() -> None:
        for _ in range(micro_batches):
            with torch.autocast("cpu", autocast) if autocast else nullcontext():
                found = loss()
            found.backward()
            del found
        optimizer.step()
        optimizer.zero_grad()

    step()
    with torch.autograd.profiler.profile(use_cpu=True, profile_memory=True) as profile:
        step()
    events = [one for one in profile.kineto_results.events() if one.name() == "[memory]"]
    live = peak = 0
    for one in sorted(events, key=lambda event: event.start_ns()):
        live += one.nbytes()
        peak = max(peak, live)
    assert peak > 0
    state = [one for values in optimizer.state.values() for one in values.values() if isinstance(one, torch.Tensor)]
    there = [*model.parameters(), *model.buffers(), *state]
    return peak + sum(one.numel() * one.element_size() for one in there)
