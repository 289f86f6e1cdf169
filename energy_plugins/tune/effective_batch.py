"""What a larger effective batch would save, and the plan to grow it, which only somebody's express wish sets off.

Where a step has no more than one small batch there is nothing to cut or join, and the effective batch itself is the
waste. Growing it changes training: fewer, larger steps, which learn no more than as many small ones only up to a size
that depends on the data (McCandlish et al. 2018, arXiv:1812.06162). So by default this is told, and nothing is done.
"""

from __future__ import annotations

from dataclasses import dataclass

from energy_plugins.errors import ConfigError
from energy_plugins.tune.learning_rate import LearningRateRule
from energy_plugins.tune.limit.decision import WORTH
from energy_plugins.tune.micro_batch.fixed_cost import FixedCost

_FURTHEST = 256
"""By which factor the outlook goes, at most: a curve says nothing of sizes far beyond those that were measured."""


@dataclass(frozen=True)
class GrownBatch:
    """One larger effective batch."""

    effective_batch: int
    micro_batch: int
    """Samples at once that it would be run with."""
    saving: float
    """Share of the energy of a sample."""
    at_most: bool
    """Whether it can be less: the GPU was never seen busy, and will be at some size."""


@dataclass(frozen=True)
class EffectiveBatchOutlook:
    """What larger effective batches would save against the present one, run with its best micro-batch."""

    effective_batch: int
    grown: tuple[GrownBatch, ...]
    """From the smallest, as long as each saves surely more than the one before."""
    rule: LearningRateRule

    @property
    def best(self) -> GrownBatch | None:
        """The smallest that saves nearly as much as any; None if none is worth it."""
        return self.grown[-1] if self.grown else None

    @property
    def sentences(self) -> tuple[str, ...]:
        """What a report says of it."""
        best = self.best
        if best is None:
            return ()
        factor = best.effective_batch / self.effective_batch
        bound = "at most " if best.at_most else "about "
        saves = (
            f"an effective batch of {best.effective_batch} instead of {self.effective_batch}, {best.micro_batch} "
            f"samples at once, would save {bound}{best.saving:.0%} of the energy of each sample"
        )
        rule = self.rule
        advice = (
            f"that changes training, so nothing was done: to try it, multiply the learning rate by "
            f"{rule.factor(factor):.3g} ({rule.name}: {rule.source}; {rule.advice})"
        )
        return saves, advice


def effective_batch_outlook(  # noqa: PLR0913 - what a step is made of; most of it by name
    curve: FixedCost,
    *,
    share: int,
    micro_batch: int,
    rule: LearningRateRule,
    ranks: int = 1,
    fits: int | None = None,
    most_w: float | None = None,
) -> EffectiveBatchOutlook:
    """Return what growing the effective batch twofold, fourfold and so on would save.

    What the optimizer's own work costs is not counted: larger batches need it less often, so they save a little more.

    Args:
        curve: what micro-batches cost.
        share: samples of a step on one rank.
        micro_batch: samples at once now.
        rule: for the learning rate.
        ranks: how many of these work on a step.
        fits: the largest micro-batch that fits into memory; None if that is not known.
        most_w: the power limit in force, above which no micro-batch draws; it tells how fast the GPU can be at best
            where it was never seen busy.
    """
    now_j = curve.energy_j(micro_batch) / micro_batch
    grown: list[GrownBatch] = []
    factor, before = 2, WORTH
    while factor <= _FURTHEST:
        size = _micro_batch(share * factor, micro_batch, fits)
        saving = 1 - _energy_j(curve, size, most_w) / size / now_j
        if saving < before:
            break
        grown.append(GrownBatch(share * factor * ranks, size, saving, at_most=curve.sample_s is None))
        factor, before = 2 * factor, saving + WORTH
    return EffectiveBatchOutlook(share * ranks, tuple(grown), rule)


@dataclass(frozen=True)
class GrowthPlan:
    """How to grow the effective batch before a training starts: by accumulating more batches of the same loader."""

    before: int
    """Samples of an optimizer step on all ranks."""
    after: int
    accumulation: int
    """Batches of the loader in one optimizer step, on each rank."""
    learning_rate_factor: float
    rule: LearningRateRule

    @property
    def sentence(self) -> str:
        """What a report says in its first lines."""
        return (
            f"TRAINING ITSELF WAS CHANGED: the effective batch is {self.after} instead of {self.before}, as was asked "
            f"for, and the learning rate {self.learning_rate_factor:.3g} times what was set ({self.rule.name}: "
            f"{self.rule.source})"
        )


def grow(batch: int, accumulation: int, *, ranks: int, most: int, rule: LearningRateRule) -> GrowthPlan | None:
    """Return the plan for the largest effective batch up to ``most``, None if there is none above the present one.

    It grows by a power of two: so a multiple of 8 stays one.

    Raises:
        ConfigError: if ``most`` is below 1.
    """
    if most < 1:
        raise ConfigError(f"max_effective_batch is {most!r}, but must be at least 1 sample")
    before = batch * accumulation * ranks
    factor = 1
    while 2 * factor * before <= most:
        factor *= 2
    if factor == 1:
        return None
    return GrowthPlan(before, factor * before, factor * accumulation, rule.factor(factor), rule)


def _micro_batch(share: int, smallest: int, fits: int | None) -> int:
    """Return the largest doubling of the present micro-batch that a share allows and memory holds."""
    size = smallest
    while 2 * size <= share and share % (2 * size) == 0 and (fits is None or 2 * size <= fits):
        size *= 2
    return size


def _energy_j(curve: FixedCost, size: int, most_w: float | None) -> float:
    """Return what a micro-batch costs, if it can draw ``most_w`` at most."""
    energy_j = curve.energy_j(size)
    if most_w is None or curve.sample_s is not None or most_w <= curve.idle_w:
        return energy_j
    # Above the floor it takes as long as it needs to draw no more: time * most_w = time * idle_w + work.
    at_limit_s = curve.sample_j * size / (most_w - curve.idle_w)
    return curve.idle_w * max(curve.floor_s, at_limit_s) + curve.sample_j * size
