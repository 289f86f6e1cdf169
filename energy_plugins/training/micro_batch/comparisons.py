"""All comparisons of gradients in one training on one rank: what they learned, how far apart any were, how long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from energy_plugins.training.micro_batch.gradient_check import GradientCheck
from energy_plugins.training.micro_batch.later_checks import CompareGroup, LaterChecks, alone
from energy_plugins.training.micro_batch.own_sizes import OwnSizes
from energy_plugins.training.micro_batch.plan import MicroBatchPlan


class Comparisons:
    """Compares batches of windows before anything changes, and groups of batches later.

    Args:
        rank: whose doubt it is if gradients differ later.
        allow_batch_statistics: whether the user accepts gradients that depend on the micro-batch.
    """

    def __init__(self, rank: OwnSizes, *, allow_batch_statistics: bool) -> None:
        self.later = LaterChecks(is_on=not allow_batch_statistics)
        self.furthest: GradientCheck | None = None
        """The one that was furthest apart, or that found a doubt."""
        self.seconds = 0.0
        """What all of them took."""
        self._rank = rank

    @property
    def must_agree(self) -> bool:
        """Whether gradients have to be the same."""
        return self.later.is_on

    def of_window(
        self, groups: Sequence[Sequence[Any]], plan: MicroBatchPlan, compare: CompareGroup, most: int
    ) -> GradientCheck | None:
        """Compare the batches of a window that tell most, see `LaterChecks.hardest`, and return what came of it."""
        group = self.later.hardest(groups, plan, most)
        check = self._timed(compare)(group, alone(plan, len(group)))
        self.later.made += 1
        if check is None or not check.is_known or (check.speaks and self.must_agree):
            return check
        if check.agrees:
            self.later.learn(group, plan, check, self._rank.steps)
        if self.furthest is None or check.difference > self.furthest.difference:
            self.furthest = check
        return check if self.must_agree or check.factor is not None else replace(check, limit=math.inf)

    def allow(self, group: Sequence[Any], plan: MicroBatchPlan, compare: CompareGroup, *, due: bool) -> bool:
        """Tell whether a group may run by ``plan``, see `LaterChecks.allow`; a doubt is noted for this rank."""
        later = self.later
        allowed = later.allow(group, plan, self._timed(compare), self._rank.steps + 1, due=due)
        if later.doubt is not None and self._rank.doubt is None:
            self._rank.doubt = later.doubt
            self.furthest = later.check or self.furthest
        return allowed

    def _timed(self, compare: CompareGroup) -> CompareGroup:
        def timed(group: Sequence[Any], plan: MicroBatchPlan) -> GradientCheck | None:
            began_ns = self._rank.now_ns()
            try:
                return compare(group, plan)
            finally:
                self.seconds += (self._rank.now_ns() - began_ns) * 1e-9

        return timed
