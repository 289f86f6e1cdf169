"""Which micro-batches a training may use: those that its batches give, that fit, and whose gradients are the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from energy_plugins.errors import BatchError
from energy_plugins.training.all_ranks import AllRanks
from energy_plugins.training.micro_batch.collectives import SPEAKS
from energy_plugins.training.micro_batch.comparisons import Comparisons
from energy_plugins.training.micro_batch.foreseen import UNFORESEEN, Foreseen
from energy_plugins.training.micro_batch.gate import AGREEING, Gate
from energy_plugins.training.micro_batch.gradient_check import GradientCheck
from energy_plugins.training.micro_batch.later_checks import CompareGroup, whole_groups
from energy_plugins.training.micro_batch.plan import MicroBatchPlan

if TYPE_CHECKING:
    from energy_plugins.config import MicroBatchConfig


class AllowedSizes:
    """Found out by all ranks together, which show it the windows of a training until it knows.

    Args:
        config: what is asked for.
        ranks: all of them.
        comparisons: of gradients, on this rank.
        foresee: returns which sizes are worth trying; collective.
        why_not: why this rank's training must be left as it is; empty if nothing is known against it.
        most_sizes: the most that may be tried.
    """

    def __init__(  # noqa: PLR0913 - what all ranks must know before they compare anything
        self,
        config: MicroBatchConfig,
        ranks: AllRanks,
        comparisons: Comparisons,
        foresee: Callable[[MicroBatchPlan], Foreseen],
        *,
        why_not: str,
        most_sizes: int,
    ) -> None:
        self.setting: MicroBatchPlan | None = None
        """What the user does; None while it is not known."""
        self.sizes: list[int] = []
        """Sizes that may be used, the user's own among them."""
        self.foreseen = UNFORESEEN
        self.may_change: bool | None = None
        """Whether the micro-batch may be another; None until that is decided."""
        self.why = why_not
        """Why it may not."""
        self.reasons: list[str] = []
        """Why sizes were struck out."""
        self._config = config
        self._ranks = ranks
        self._comparisons = comparisons
        self._foresee = foresee
        self._most_sizes = most_sizes
        self._open: list[int] = []
        """Sizes whose gradients are still to be compared, the one to begin with last."""
        self._gate: Gate | None = None

    @property
    def smaller(self) -> list[int]:
        """Those below the user's, rising."""
        return [] if self.setting is None else [one for one in self.sizes if one < self.setting.batch]

    def look(self, batch: int | None, accumulation: int, compare: CompareGroup, window: Sequence[Any]) -> None:
        """Decide, if this window tells; see `MicroBatcher.consider`. Collective until it is decided."""
        if self.setting is None:
            self._agree(batch, accumulation)
        while self._open and self.setting is not None:
            plan = replace(self.setting, size=self._open[-1])
            # Where gradients may differ more windows would only say again by how much.
            gate = self._gate or Gate(self._ranks, agreeing=AGREEING if self._comparisons.must_agree else 1)
            self._gate = gate
            gate.look(self._comparison(compare, plan, window, gate))
            if gate.is_open is None:
                return
            self._judge(gate, plan)
            self._gate = None
        if self.may_change is None:
            self._end()

    def _agree(self, batch: int | None, accumulation: int) -> None:
        """Find out what all ranks have, and which sizes are worth comparing."""
        words = self._ranks.hear((math.nan if batch is None else float(batch), float(accumulation), bool(self.why)))
        if any(word[2] for word in words):
            self._decline(self.why or "another rank's training must be left as it is")
        elif any(math.isnan(word[0]) for word in words):
            self._decline("how many samples a batch has cannot be told, so it can be neither cut nor joined")
        elif len(set(words)) > 1 or batch is None:
            found = ", ".join(f"{word[0]:g} x {word[1]:g}" for word in words)
            self._decline(f"ranks have batches of their own ({found}), so no one size fits all")
        else:
            self.setting = MicroBatchPlan(batch, accumulation, batch)
            self._open = self._to_compare(self.setting)

    def _to_compare(self, setting: MicroBatchPlan) -> list[int]:
        """Return the sizes to compare: the one given, or the smallest and the largest; those between are like them."""
        batch, fixed = setting.batch, self._config.size
        if fixed is not None:
            try:
                replace(setting, size=fixed)
            except BatchError as error:
                self._decline(str(error))
                return []
            self.sizes = [fixed]
            return [] if fixed == batch else [fixed]
        self.foreseen = self._foresee(setting)
        self.sizes = possible = thinned(self.foreseen.sizes, batch, self._most_sizes)
        if len(possible) == 1:
            self._decline(
                f"an optimizer step has no more than one batch of {batch}, which cannot be cut: only a larger "
                "effective batch would change anything, and that is another training"
            )
            return []
        return sorted({possible[0], possible[-1]} - {batch})

    def _comparison(
        self, compare: CompareGroup, plan: MicroBatchPlan, window: Sequence[Any], gate: Gate
    ) -> Callable[[], GradientCheck | None]:
        """Return what compares a window: on all ranks as many batches, since their passes may wait for each other."""
        groups = whole_groups(window, plan)
        least = round(min(count for (count,) in self._ranks.hear([float(len(groups))])))

        def compared() -> GradientCheck | None:
            check = self._comparisons.of_window(groups, plan, compare, least) if least else None
            if check is not None and check.speaks and self._comparisons.must_agree:
                gate.why_not = SPEAKS
                return None
            return check

        return compared

    def _judge(self, gate: Gate, plan: MicroBatchPlan) -> None:
        """Strike out what cannot be used."""
        self._open.pop()
        if gate.is_open:
            return
        batch, size = plan.batch, plan.size
        if gate.fits:
            self.sizes = [one for one in self.sizes if (one - batch) * (size - batch) <= 0]
        else:
            self.sizes = [one for one in self.sizes if one < size]
            larger = [one for one in self.sizes if one > batch]
            self._open += larger[-1:]
        self.reasons.append(f"{size} samples at once: {gate.why_not}")

    def _end(self) -> None:
        setting = self.setting
        if setting is None or (self.sizes in ([], [setting.batch]) and self._config.size != setting.batch):
            self._decline("; ".join(self.reasons))
        else:
            self.may_change = True

    def _decline(self, why: str) -> None:
        self.why, self._open, self.may_change = why, [], False


def thinned(sizes: Sequence[int], batch: int, most: int) -> list[int]:
    """Return as many of the sizes, rising: the user's, the largest, and others that lie evenly between these.

    Where the user's is the largest, between it and the smallest; else smaller ones than the user's go first.
    """
    kept = list(sizes)
    while len(kept) > most:
        ends = {batch, kept[-1], *([kept[0]] if batch == kept[-1] else [])}
        room = {
            one: after / before if before else 0.0
            for before, one, after in zip([0, *kept], kept, [*kept[1:], 0], strict=False)
            if one not in ends
        }
        kept.remove(min(room, key=room.__getitem__))
    return kept
