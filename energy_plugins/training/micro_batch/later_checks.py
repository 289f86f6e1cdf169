"""Gradients checked again while another micro-batch is in force: a loss may agree for long, and then no more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from energy_plugins.training.micro_batch.batch_tree import cut, samples_in
from energy_plugins.training.micro_batch.doubt import Doubt, said_of, told_difference
from energy_plugins.training.micro_batch.gradient_check import GradientCheck
from energy_plugins.training.micro_batch.out_of_memory import free_caches, is_out_of_memory
from energy_plugins.training.micro_batch.plan import MicroBatchPlan
from energy_plugins.training.micro_batch.sample_counts import SampleCounts

CompareGroup = Callable[[Sequence[Any], MicroBatchPlan], GradientCheck | None]
"""Runs the batches of a group both ways, on this rank alone; None if they are no whole ones."""

_EARLY = (1, 10, 100)
"""Optimizer steps with the size that was chosen at which a group is checked whatever its counts."""
_LATER = 20_000
"""The next, and from then on each tenfold. Ours: a check takes the time of two to four steps, and of some twenty where
it is made in float32 beside a lower precision: 0.1 % at most."""
_ROUNDING = 1e-6
"""Of counts in float32, as a share."""
_MOST_UNKNOWN = 3
"""Checks one after another that told nothing, after which there will be none."""


def is_due(step: int) -> bool:
    """Tell whether a group is to be checked at the ``step``-th optimizer step with the size that was chosen."""
    while step > _LATER and step % 10 == 0:
        step //= 10
    return step in (*_EARLY, _LATER)


class _Ran(NamedTuple):
    """A group that was to run otherwise."""

    batches: Sequence[Any]
    plan: MicroBatchPlan
    counts: SampleCounts
    step: int


class LaterChecks:
    """Says of each group of batches, before it runs, whether it may run otherwise than the user has it.

    It knows how unequal the parts of groups were whose gradients agreed. One that is more than twice as unequal, in
    whatever a loss may be divided by (`SampleCounts`), is checked first. It is one rank's own: nothing is collective.

    Args:
        is_on: whether gradients have to be the same; if not, everything may run.
        count: counts what a loss of batches may be divided by.
    """

    def __init__(self, *, is_on: bool = True, count: Callable[[Sequence[Any]], SampleCounts] = SampleCounts) -> None:
        self.doubt: Doubt | None = None
        """What was found: from then on nothing may run otherwise."""
        self.check: GradientCheck | None = None
        """The check that found it."""
        self.made = 0
        """Checks so far."""
        self.is_on = is_on
        """Whether gradients have to be the same."""
        self._count = count
        self._known: dict[int, list[float]] = {}
        """The largest spread of each count in groups whose gradients agreed; by how many counts they have."""
        self._agreed = 0
        """The last step at which some did."""
        self._unknown = 0
        self._raised = ""
        """By the last check that told nothing; empty if it raised nothing."""
        self._looked = 0
        """The last step at which a group was checked because it was due."""
        self._turn = 0
        """How many were, so that it is another of the step each time."""
        self._place = (0, 0)
        """The last step, and which of its groups came last."""
        self._ran: _Ran | None = None
        """The last group, if it runs and its counts are still on their way."""

    def learn(self, window: Sequence[Any], plan: MicroBatchPlan, check: GradientCheck, step: int) -> None:
        """Hear of a window that was run both ways and agreed."""
        if not self.is_on:
            return
        self._agreed = step
        for first in range(0, len(window), plan.together):
            group = window[first : first + plan.together]
            if check.samples is not None:
                group = [cut(batch, check.samples)[0] for batch in group]
            self._widen(self._counted(group).spreads(_parts(group, plan)))

    def hardest(self, groups: Sequence[Sequence[Any]], plan: MicroBatchPlan, most: int = 2) -> Sequence[Any]:
        """Return the batches of a window that tell most: the group whose parts are most unequal, and another in turn.

        Each batch that is cut, and each group that runs together, adds a term of its own to the gradient of a window.
        Another, because tasks may take turns, and what a loss of one of them depends on may be what nobody counts.

        Args:
            groups: `whole_groups` of the window, one at least.
            plan: what is to be made of them.
            most: groups that are returned.
        """
        if len(groups) == 1:
            return groups[0]
        spreads = [max(self._counted(one).spreads(_parts(one, plan)), default=0.0) for one in groups]
        place = spreads.index(max(spreads))
        others = [*groups[:place], *groups[place + 1 :]]
        return [*groups[place], *(others[self.made % len(others)] if most > 1 else ())]

    def allow(
        self, group: Sequence[Any], plan: MicroBatchPlan, compare: CompareGroup, step: int, *, due: bool = False
    ) -> bool:
        """Tell whether a group may run by ``plan``.

        Args:
            group: one batch that is to be cut, or those that are to run together.
            plan: what is to be made of it.
            compare: see `CompareGroup`.
            step: the optimizer step that it is part of, from 1 on.
            due: whether it is to be checked whatever its counts.
        """
        samples = [samples_in(batch) for batch in group]
        if not self.is_on or None in samples:  # what cannot be cut or joined runs as it came
            return True
        ran, self._ran = self._ran, None
        if ran is not None and not self._is_shut and self._exceeds(ran):
            self._check(ran, compare, is_unequal=True, has_run=True)
        if self._is_shut:
            return False
        this, is_whole = _Ran(group, plan, self._counted(group), step), samples == [plan.batch] * len(group)
        self._place = (step, self._place[1] + 1 if self._place[0] == step else 0)
        is_its_turn = self._place[1] == self._turn % max(plan.accumulation // plan.together, 1)
        due = due and is_whole and is_its_turn and self._looked != step
        if not due and not this.counts.is_here and is_whole and not self._unknown:
            self._ran = this
            return True
        is_unequal = self._exceeds(this)
        if not due and not is_unequal:
            return True
        self._looked, self._turn = step, self._turn + due
        agrees = is_whole and self._check(this, compare, is_unequal=is_unequal)
        return agrees or not (is_unequal or self._is_shut)

    @property
    def _is_shut(self) -> bool:
        return self.doubt is not None

    def forget(self) -> None:
        """Let go of the last group."""
        self._ran = None

    def _exceeds(self, group: _Ran) -> bool:
        """Tell whether it is too unequal to run unchecked. Waits for its counts."""
        spreads = group.counts.spreads(_parts(group.batches, group.plan))
        known = self._known.get(len(spreads), [0.0] * len(spreads))
        return any(now > 2 * before + _ROUNDING for now, before in zip(spreads, known, strict=True))

    def _check(self, group: _Ran, compare: CompareGroup, *, is_unequal: bool, has_run: bool = False) -> bool:
        """Run it both ways, and return whether its gradients agree."""
        self.made += 1
        found = self._compared(group, compare)
        if found is not None and found.is_known and found.agrees:
            self._unknown = 0
            self.learn(group.batches, group.plan, found, group.step)
            return True
        # Where counts are like those before, all steps since the last check may be like this one.
        in_doubt = (0, 0) if is_unequal else (self._agreed + 1, group.step - 1)
        in_doubt = (group.step, group.step) if has_run else in_doubt
        in_doubt = in_doubt if in_doubt[0] <= in_doubt[1] else (0, 0)
        if found is not None and found.is_known:
            self.check = found
            self.doubt = Doubt(group.step, told_difference(found.difference), *in_doubt)
        elif is_unequal:
            self._unknown += 1
            if self._unknown >= _MOST_UNKNOWN:
                self.doubt = Doubt(group.step, -1.0, *in_doubt, raised=self._raised)
        return False

    def _compared(self, group: _Ran, compare: CompareGroup) -> GradientCheck | None:
        """Return what a check says; None if it cannot be made."""
        self._raised = ""
        try:
            return compare(group.batches, alone(group.plan, len(group.batches)))
        except Exception as error:  # noqa: BLE001 - what a training's own code says of batches that are not its own
            self._raised, too_large = said_of(error), is_out_of_memory(error)
        if too_large:
            free_caches()
        return None

    def _counted(self, batches: Sequence[Any]) -> SampleCounts:
        """Return the counts of batches: none of those that nobody can count, or where there is no memory to do so."""
        try:
            return self._count(batches)
        except (RuntimeError, MemoryError, TypeError):
            return SampleCounts(())

    def _widen(self, spreads: Sequence[float]) -> None:
        known = self._known.get(len(spreads), [0.0] * len(spreads))
        self._known[len(spreads)] = list(map(max, spreads, known))


def whole_groups(window: Sequence[Any], plan: MicroBatchPlan) -> list[Sequence[Any]]:
    """Return the batches of a window that are cut, each alone, or that run together, without those that are short."""
    groups = [window[first : first + plan.together] for first in range(0, len(window), plan.together)]
    return [one for one in groups if [samples_in(batch) for batch in one] == [plan.batch] * plan.together]


def alone(plan: MicroBatchPlan, batches: int) -> MicroBatchPlan:
    """Return what a plan is for a group alone, or some of them, as if they made an optimizer step."""
    return replace(plan, size=min(plan.size, plan.batch * batches), accumulation=batches)


def _parts(group: Sequence[Any], plan: MicroBatchPlan) -> list[int]:
    """Return of how many samples each are that have a mean of their own in one way, and not in the other."""
    samples = [samples_in(batch) or 0 for batch in group]
    if len(samples) > 1:
        return samples
    size = max(min(plan.size, samples[0]), 1)
    rest = samples[0] % size
    return [size] * (samples[0] // size) + ([rest] if rest else [])
