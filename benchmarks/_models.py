"""Models that benchmarks and tests train, written out so that nothing has to be installed or downloaded for them."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from itertools import pairwise

import torch
from torch import nn


def perceptron(*widths: int, inplace: bool = False) -> nn.Sequential:
    """Return a multilayer perceptron with a ReLU after each layer."""
    layers = [nn.Sequential(nn.Linear(*pair), nn.ReLU(inplace)) for pair in pairwise(widths)]
    return nn.Sequential(*layers)


class Norm(Enum):
    """What normalises inside of a ResNet; the second does not depend on the other samples of a micro-batch."""

    BATCH = "BatchNorm"
    GROUP = "GroupNorm"

    def of(self, channels: int) -> nn.Module:
        """Return a layer; groups are 32, as in Wu and He, arXiv:1803.08494."""
        return nn.BatchNorm2d(channels) if self is Norm.BATCH else nn.GroupNorm(min(32, channels), channels)


def convolutions(layers: int = 16, channels: int = 64) -> nn.Sequential:
    """Return layers that are all alike: a 1x1 convolution, BatchNorm and a ReLU; one number for each of 10 classes."""
    alike = [
        nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
        for _ in range(layers)
    ]
    return nn.Sequential(
        nn.Conv2d(3, channels, 1), *alike, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)
    )


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, and the way around them (He et al., arXiv:1512.03385; the stride is the 3x3's)."""

    def __init__(self, channels: int, inner: int, stride: int, norm: Norm) -> None:
        super().__init__()
        outer = 4 * inner
        self.inside = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False),
            norm.of(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, stride, 1, bias=False),
            norm.of(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, outer, 1, bias=False),
            norm.of(outer),
        )
        is_plain = stride == 1 and channels == outer
        around = nn.Sequential(nn.Conv2d(channels, outer, 1, stride, bias=False), norm.of(outer))
        self.around = nn.Identity() if is_plain else around
        self.last = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        return self.last(self.inside(x) + self.around(x))  # type: ignore[no-any-return]


def resnet(blocks: Iterable[int] = (3, 4, 6, 3), width: int = 64, norm: Norm = Norm.BATCH) -> nn.Sequential:
    """Return ResNet-50 for 1000 classes, or a smaller one."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 7, 2, 3, bias=False),
        norm.of(width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    channels = width
    for stage, count in enumerate(blocks):
        inner = width * 2**stage
        for place in range(count):
            layers.append(Bottleneck(channels, inner, 2 if stage and not place else 1, norm))
            channels = 4 * inner
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))
