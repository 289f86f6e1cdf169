"""Models and optimizers to trace and to run, and how much memory their steps really take on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from itertools import pairwise

import torch
from torch import nn

Loss = Callable[[], torch.Tensor]


def perceptron(*widths: int, inplace: bool = False) -> nn.Sequential:
    """A multilayer perceptron with a ReLU after each layer."""
    layers = [nn.Sequential(nn.Linear(*pair), nn.ReLU(inplace)) for pair in pairwise(widths)]
    return nn.Sequential(*layers)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, and the way around them (He et al., arXiv:1512.03385; the stride is the 3x3's)."""

    def __init__(self, channels: int, inner: int, stride: int) -> None:
        super().__init__()
        outer = 4 * inner
        self.inside = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, stride, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, outer, 1, bias=False),
            nn.BatchNorm2d(outer),
        )
        is_plain = stride == 1 and channels == outer
        around = nn.Sequential(nn.Conv2d(channels, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))
        self.around = nn.Identity() if is_plain else around
        self.last = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.inside(x) + self.around(x))  # type: ignore[no-any-return]


def resnet(blocks: Iterable[int] = (3, 4, 6, 3), width: int = 64, classes: int = 1000) -> nn.Sequential:
    """ResNet-50, or a smaller one."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 7, 2, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    channels = width
    for stage, count in enumerate(blocks):
        inner = width * 2**stage
        for place in range(count):
            layers.append(Bottleneck(channels, inner, 2 if stage and not place else 1))
            channels = 4 * inner
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


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
