"""Which micro-batches there are to try: what can be cut or joined exactly, at the boundaries of the memory hierarchy.

A batch of ``batch`` samples is cut into equal chunks, or whole batches of one accumulation window are run together: no
other sizes leave the effective batch as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from energy_plugins.errors import ConfigError

MOST_SIZES = 8
"""torch.compile gives up on a function that it has compiled for so many sizes (``recompile_limit``)."""
MULTIPLE = 8
"""Tensor cores of 16-bit types work on multiples of so many (NVIDIA, "Matrix Multiplication Background User's Guide",
tensor core requirements)."""
SURELY_FITS, MAY_FIT = 0.9, 1.2
"""Of the memory there is, what may be predicted for a size that surely fits, or may yet fit. Predictions are to be
right to 15 %, and the allocator keeps some for itself."""


class Level(Protocol):
    """A level of the memory hierarchy."""

    @property
    def name(self) -> str:
        """Such as "L2"."""

    @property
    def size_bytes(self) -> int:
        """How much it holds."""


class Hierarchy(Protocol):
    """The levels of a device, from the fastest and smallest on, as `MemoryHierarchy` tells them."""

    @property
    def levels(self) -> Sequence[Level]:
        """Caches named L1 and so on, then the memory behind them; those that are not known are left out."""


class Needs(Protocol):
    """What a model needs of memory, as `WorkingSet` tells it."""

    @property
    def layer_bytes_per_sample(self) -> float:
        """Inputs and outputs of the largest layer."""

    def peak_bytes(self, size: int) -> float:
        """Return what a step with so many samples at once needs in all."""


@dataclass(frozen=True)
class Memory:
    """What is known of a model on a device: where its activations live, and what fits."""

    hierarchy: Hierarchy
    needs: Needs
    bytes: float | None = None
    """What may be used; None for all of the device's own memory."""

    def level_of(self, size: int) -> str:
        """Return the name of the first level that holds a layer's activations; beyond all that are known, "memory"."""
        needed = self.needs.layer_bytes_per_sample * size
        return next((level.name for level in self.hierarchy.levels if needed <= level.size_bytes), "memory")

    @property
    def bytes_there(self) -> float:
        """What may be used; infinite if it is not known how much there is."""
        last = self.hierarchy.levels[-1] if self.hierarchy.levels else None
        behind_caches = last is not None and not last.name.startswith("L")
        return self.bytes or (last.size_bytes if last is not None and behind_caches else math.inf)

    def need(self, size: int) -> float:
        """Return the share of the memory that a size is predicted to need; 0 if it is not known how much there is."""
        return self.needs.peak_bytes(size) / self.bytes_there

    def fits(self, sizes: Sequence[int]) -> int:
        """Return the largest of ``sizes`` that surely fits, 0 if none does."""
        return max((size for size in sizes if self.need(size) <= SURELY_FITS), default=0)


def candidates(
    batch: int,
    accumulation: int,
    hierarchy: Hierarchy | None = None,
    working_set: Needs | None = None,
    *,
    memory_bytes: float | None = None,
) -> tuple[int, ...]:
    """Return the sizes to try, rising, at most `MOST_SIZES`, the batch itself among them.

    Of more sizes those are left out first that tensor cores do not like, then those close to others; the sizes on both
    sides of a boundary of the hierarchy stay, and so does the largest. Size 1 is only there if it is the batch:
    torch.compile makes a special case of it.

    Args:
        batch: samples that the loader yields at once, on one rank.
        accumulation: how many of these the framework accumulates for one optimizer step.
        hierarchy: of the device, and
        working_set: of the model: with both, what cannot fit into memory is left out.
        memory_bytes: what of the device's memory may be used; None for all of it.

    Raises:
        ConfigError: if ``batch`` or ``accumulation`` is below 1.
    """
    sizes = possible(batch, accumulation)
    kept = {batch, sizes[-1]}
    if hierarchy is not None and working_set is not None:
        memory = Memory(hierarchy, working_set, memory_bytes)
        sizes = [size for size in sizes if size == batch or memory.need(size) <= MAY_FIT]
        kept = {batch, sizes[-1], memory.fits(sizes)}
        for below, above in pairwise(sizes):
            if memory.level_of(below) != memory.level_of(above):
                kept |= {below, above}
    while len(sizes) > MOST_SIZES:
        sizes.remove(_least(sizes, batch, kept))
    return tuple(sizes)


def possible(batch: int, accumulation: int) -> list[int]:
    """Return every size into which a step's samples can be cut or joined exactly, but 1 beside others."""
    for name, value in (("batch", batch), ("accumulation", accumulation)):
        if value < 1:
            raise ConfigError(f"{name} is {value!r}, but must be at least 1: pass what the training has")
    sizes = {size for size in range(2, batch) if batch % size == 0}
    sizes |= {batch * joined for joined in range(1, accumulation + 1) if accumulation % joined == 0}
    return sorted(sizes)


def _least(sizes: Sequence[int], batch: int, kept: set[int]) -> int:
    """Return the size that is least worth trying, never the batch."""

    def worth(size: int) -> tuple[bool, bool, float, int]:
        place = sizes.index(size)
        below, above = sizes[max(place - 1, 0)], sizes[min(place + 1, len(sizes) - 1)]
        liked = size % MULTIPLE == 0 or (size < MULTIPLE and batch < MULTIPLE)
        return size in kept, liked, above / below if liked else size, -size

    return min((size for size in sizes if size != batch), key=worth)
