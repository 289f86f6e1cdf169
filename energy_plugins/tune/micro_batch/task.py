"""What a search for a micro-batch is asked for, what it asks, and what it is told."""

from __future__ import annotations

import math
from dataclasses import dataclass

from energy_plugins.errors import ConfigError
from energy_plugins.tune.limit.measurement import Measurement
from energy_plugins.tune.micro_batch.sizes import MOST_SIZES, Memory, candidates

BUDGET_S = 60.0
"""Seconds of training that a search may take, if nobody says otherwise: all of it useful steps."""


@dataclass(frozen=True, kw_only=True)
class MicroBatchTask:
    """A search for the number of samples that go through the model at once.

    Raises:
        ConfigError: if a value makes no sense; the message names it and says what to do.
    """

    start: int
    """The user's setting: samples that the loader yields at once. Kept, unless another surely costs less."""
    candidates: tuple[int, ...]
    """The sizes that may be tried, from the smallest; the start is one of them. At most eight: torch.compile compiles
    no more before it gives up."""
    share: int
    """Samples of an optimizer step on one rank; every candidate divides it."""
    budget_s: float | None = None
    """Seconds of training that the search may take, those at the start included; None for a minute."""
    host_power_w: float = 0.0
    """What the machine draws beside what is measured, for as long as a step takes."""
    fits: int | None = None
    """The largest size that is predicted to fit into memory; None if that is not known."""
    levels: tuple[str, ...] = ()
    """At which level of the memory hierarchy a layer's activations live at each candidate; empty if not known."""

    def __post_init__(self) -> None:
        sizes = self.candidates
        if not self.share > 0:
            raise ConfigError(f"the share is {self.share!r}, but must be above 0: batch size times accumulation")
        if list(sizes) != sorted(set(sizes)) or not sizes or len(sizes) > MOST_SIZES:
            raise ConfigError(
                f"the candidates are {sizes!r}, but must be one to {MOST_SIZES} different sizes in rising order: "
                "energy_plugins.tune.candidates() makes them"
            )
        if self.start not in sizes:
            raise ConfigError(f"the start is {self.start!r}, not one of the candidates {sizes!r}: add it")
        wrong = [size for size in sizes if size < 1 or self.share % size]
        if wrong:
            raise ConfigError(f"{wrong[0]!r} samples at once do not divide the {self.share} of a step: leave it out")
        if self.budget_s is not None and not self.budget_s > 0:
            raise ConfigError(f"budget_s is {self.budget_s!r}, but must be above 0, or None for {BUDGET_S:.0f} s")
        if not 0 <= self.host_power_w < math.inf:
            raise ConfigError(f"host_power_w is {self.host_power_w!r}, but must be finite and at least 0 W")
        if self.levels and len(self.levels) != len(sizes):
            raise ConfigError(f"there are {len(self.levels)} levels for {len(sizes)} candidates: one each, or none")

    @classmethod
    def of(
        cls,
        batch: int,
        accumulation: int,
        memory: Memory | None = None,
        *,
        budget_s: float | None = None,
        host_power_w: float = 0.0,
    ) -> MicroBatchTask:
        """Return the search for a training whose loader yields ``batch`` samples, ``accumulation`` times a step.

        Raises:
            ConfigError: if one of them is below 1.
        """
        sizes = (
            candidates(batch, accumulation, memory.hierarchy, memory.needs, memory_bytes=memory.bytes)
            if memory
            else candidates(batch, accumulation)
        )
        return cls(
            start=batch,
            candidates=sizes,
            share=batch * accumulation,
            budget_s=budget_s,
            host_power_w=host_power_w,
            fits=memory.fits(sizes) if memory else None,
            levels=tuple(map(memory.level_of, sizes)) if memory else (),
        )

    def level_of(self, size: int) -> str | None:
        """Return the level at which a layer's activations live, None if that is not known."""
        return self.levels[self.candidates.index(size)] if self.levels else None


@dataclass(frozen=True)
class Action:
    """Run steps with this micro-batch, and measure them for about so long."""

    size: int
    seconds: float
    guarded: bool = False
    """Whether it is not known to fit into memory: try one step first, and be ready for it to fail."""


@dataclass(frozen=True)
class OutOfMemory:
    """An answer to an action: this size does not fit."""

    size: int


@dataclass(frozen=True)
class Refused:
    """An answer to an action: this size cannot be used."""

    size: int
    why: str
    """What it fails at, such as "its gradients differ by 3e-3"."""


Outcome = Measurement | OutOfMemory | Refused


@dataclass(frozen=True)
class SizeWindow:
    """One window of a search."""

    size: int
    """The micro-batch during it."""
    middle_s: float
    """Its middle, in seconds of windows since the search began."""
    seconds: float
    """How long it was asked to be, or one step if that is longer."""
    measured: Measurement
