"""The course of a search for a micro-batch: first steps, a search, the choice. All ranks follow it in step.

As the course of a limit (`limits/course.py`) it is a generator that yields for how many optimizer steps to go on as
things are, and whatever decides has been heard from all ranks.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

from energy_plugins.training.limits.windows import Windows
from energy_plugins.training.micro_batch.foreseen import UNFORESEEN, Foreseen
from energy_plugins.training.micro_batch.own_sizes import OwnSizes
from energy_plugins.training.micro_batch.probe import Probe
from energy_plugins.training.micro_batch.rank_words import RankWords
from energy_plugins.training.micro_batch.searched import Searched, ran_out_of_memory
from energy_plugins.tune import Measurement, MicroBatchChoice, MicroBatchTask, OutOfMemory, Refused
from energy_plugins.tune.beside import best_beside, to_measure
from energy_plugins.tune.micro_batch.search import WINDOW_S, Action, Done, begin, step
from energy_plugins.tune.micro_batch.task import BUDGET_S, SizeWindow

_CHANGE_STEPS = 3
"""Optimizer steps after a change that are left out: kernels are chosen, and what is compiled is compiled again."""
_PACE_STEPS = 2
"""After them, by which it is told how long a step takes now."""

_MOST_PROBES = 20
"""Optimizer steps to wait for one whose batches tell whether a size fits."""

_FOR_EVER = 1 << 62
"""Optimizer steps."""


class MicroBatchCourse:
    """What one rank does, and when; it ends with `GradientsDifferError` on all ranks if one of them has a doubt.

    Args:
        windows: of the training, by optimizer steps.
        rank: this one, the same that the windows have.
        share: samples of an optimizer step on one rank.
        search_share: the most of the training that the search may take.
        remembered: a size that was chosen for such a training, to be looked at first; on rank 0. 0 if none is known.
        checked_s: what comparing gradients has taken on this rank: a search gets so much less than its minute.
    """

    def __init__(  # noqa: PLR0913 - what a training is
        self,
        windows: Windows,
        rank: OwnSizes,
        *,
        share: int,
        search_share: float,
        remembered: int = 0,
        checked_s: float = 0.0,
    ) -> None:
        self.searched = Searched()
        self.probe: Probe | None = None
        """What is asked before a size is used that may not fit."""
        self._windows = windows
        self._rank = rank
        self._ranks = windows.ranks
        self._timing = windows.timing
        self._share = share
        self._search_share = search_share
        self._words = RankWords(windows, rank, remembered=remembered, checked_s=checked_s)
        self._task: MicroBatchTask | None = None
        """Of the search, once there is one."""
        self._turned = 0
        """The size that all ranks turned to last, 0 if they have not."""
        self._spent_s = 0.0
        """Of its budget: windows, and the steps that changes, late figures and failures took; the same on all ranks."""

    def searching(self, start: int, candidates: Sequence[int], foreseen: Foreseen = UNFORESEEN) -> Iterator[int]:
        """Yield for how many optimizer steps to go on as things are."""
        self._words.start, searched, began_ns = start, self.searched, 0
        budget_s = yield from self._budget()
        if budget_s is not None:
            began_ns = self._rank.now_ns()
            task = MicroBatchTask(
                start=start,
                candidates=tuple(candidates),
                share=self._share,
                budget_s=budget_s * self._timing.shorter,
                fits=foreseen.fits,
                levels=foreseen.levels_of(candidates),
            )
            self._task = task
            remembered = round(self._words.hear()[0].remembered)
            if remembered != start and remembered in candidates:
                yield from self._check(task, remembered)
            if searched.choice is None:
                searched.source = "search"
                searched.choice = yield from self._search_with_what_is_left(task)
            searched.search_s = (self._rank.now_ns() - began_ns) * 1e-9
        size = start if searched.choice is None else searched.choice.size
        yield from self.keeping(start, size)

    def keeping(self, start: int, size: int) -> Iterator[int]:
        """The same for a size that is settled: go on, unless a rank runs out of memory with it, or has a doubt."""
        self._words.start = start
        self._turn_unless_too_large(size)
        self.searched.is_over = True
        while size != start:
            yield self._windows.steps_in(self._timing.watch_s)
            self._words.hear()
            if self._words.is_too_large(size):
                self.searched.why = ran_out_of_memory(size, is_back=self._turn_unless_too_large(start))
                size = start
        while True:
            yield _FOR_EVER

    def checking(self, slack: float) -> Iterator[int]:
        """The same once a power limit has been found since: compare the choice with the sizes beside it, and go on.

        ``slack`` is by how much steps may become longer (the logarithm of a ratio). Every rank comes here after the
        same step. Without time for it within the share of a search, nothing is compared.
        """
        searched, task = self.searched, self._task
        assert task is not None  # noqa: S101 - nothing is chosen without one
        assert searched.choice is not None  # noqa: S101
        size = searched.choice.size
        asked = to_measure(searched.choice)
        if self._may_take(len(asked) * WINDOW_S / self._timing.shorter):
            searched.is_checking, began_ns = True, self._rank.now_ns()
            measured = yield from self._in_turn(task, size, asked)
            searched.is_checking = False
            searched.search_s += (self._rank.now_ns() - began_ns) * 1e-9
            if measured is None:
                size = self._rank.size or task.start
            else:
                searched.looked_at = sorted({one.size for one in measured} - {size})
                searched.beside = best_beside(task, size, measured, slack=slack)
                size = searched.beside.size
        yield from self.keeping(task.start, size)

    def _in_turn(
        self, task: MicroBatchTask, size: int, asked: Sequence[int]
    ) -> Generator[int, None, list[SizeWindow] | None]:
        """Return a window of each size; one beside ``size`` that fails is none, but if that fails there are none."""
        windows: list[SizeWindow] = []
        self._rank.let_settle()  # the limit has just been turned
        for each in asked:
            outcome = yield from self._measure(task, Action(each, WINDOW_S))
            if isinstance(outcome, Measurement):
                windows.append(SizeWindow(each, (len(windows) + 0.5) * WINDOW_S, WINDOW_S, outcome))
            elif each == size:
                if isinstance(outcome, OutOfMemory):
                    self.searched.why = ran_out_of_memory(size, is_back=not self._words.is_too_large(task.start))
                return None
        return windows

    def _may_take(self, seconds: float) -> bool:
        """Tell whether so much more may be spent of the training; the minute of a search is over by now."""
        words = self._words.hear()
        elapsed_s, left_s = min(word.elapsed_s for word in words), words[0].left_s
        planned_s = elapsed_s + (0.0 if math.isnan(left_s) else left_s)
        return 0 < seconds <= self._search_share * planned_s - self.searched.search_s

    def _budget(self) -> Generator[int, None, float | None]:
        """Return how many seconds the search may take once there is time for it, None if there will be none."""
        timing, windows, searched = self._timing, self._windows, self.searched
        yield from windows.first_steps()
        while True:
            words = self._words.hear()
            windows.step_s = max(word.step_s for word in words)
            elapsed_s, left_s = min(word.elapsed_s for word in words), words[0].left_s
            most_s = max(BUDGET_S - max(word.checked_s for word in words), BUDGET_S / 2)
            if any(word.able != 1.0 for word in words):
                searched.why = (
                    f"{self._rank.trouble or 'another rank measures nothing'}, so no size can be searched for: give "
                    "the one to use (size=...)"
                )
                return None
            if math.isnan(left_s):
                share_s = self._search_share * elapsed_s
                if share_s >= timing.unplanned_s:
                    return min(share_s, most_s)
                wait_s = timing.watch_s
            else:
                budget_s = min(self._search_share * (elapsed_s + left_s), most_s)
                if budget_s < timing.least_search_s:
                    searched.why = (
                        f"{self._search_share:g} of the training, which is planned to take {elapsed_s + left_s:.0f} s "
                        "in all, is too short to search: see micro_batch.search_share"
                    )
                    return None
                if elapsed_s >= timing.first_s:
                    return budget_s
                wait_s = timing.first_s - elapsed_s
            yield windows.steps_in(wait_s)

    def _check(self, task: MicroBatchTask, size: int) -> Iterator[int]:
        """Compare a remembered size with the user's setting, and choose it if it still surely saves."""
        pair = tuple(sorted((task.start, size)))
        levels = tuple(level for one in pair if (level := task.level_of(one)) is not None)
        choice = yield from self._search(replace(task, candidates=pair, levels=levels))
        if choice.size == size:
            self.searched.source, self.searched.choice = "memory", choice

    def _search_with_what_is_left(self, task: MicroBatchTask) -> Generator[int, None, MicroBatchChoice]:
        """Search in the time that a check of a remembered size has left."""
        left_s = (task.budget_s or BUDGET_S) - self._spent_s
        return (yield from self._search(replace(task, budget_s=max(left_s, WINDOW_S))))

    def _search(self, task: MicroBatchTask) -> Generator[int, None, MicroBatchChoice]:
        state, action = begin(task)
        while True:
            began_ns = self._rank.now_ns()
            outcome = yield from self._measure(task, action)
            took_s = self._timing.shorter * max(self._ranks.hear([(self._rank.now_ns() - began_ns) * 1e-9]))[0]
            self._spent_s += took_s
            state, following = step(state, outcome, took_s)
            if isinstance(following, Done):
                return following.choice
            action = following

    def _measure(
        self, task: MicroBatchTask, action: Action
    ) -> Generator[int, None, Measurement | OutOfMemory | Refused]:
        """Run steps with a size for a while, and return what they tell."""
        windows, rank, size = self._windows, self._rank, action.size
        if self._words.is_too_large(size):
            return OutOfMemory(size)
        if (rank.size or task.start) != size:
            # Not by what is in force here: a rank may just have gone down by itself, and all must ask together.
            if action.guarded and size > (self._turned or task.start) and not (yield from self._fits(size)):
                return OutOfMemory(size)
            rank.turn(size)
            self._turned = size
            yield _CHANGE_STEPS
        began_ns = rank.now_ns()
        yield _PACE_STEPS
        windows.step_s = max((rank.now_ns() - began_ns) * 1e-9 / _PACE_STEPS, 1e-6)
        words = self._words.hear()
        windows.step_s = max(word.step_s for word in words)
        measured = None
        if not self._words.is_too_large(size):
            windows.begin()
            measured = yield from windows.measure(None, action.seconds / self._timing.shorter, back=None)
            self._words.hear()
        if self._words.is_too_large(size):
            self._turn_unless_too_large(task.start)
            self._turned = task.start
            return OutOfMemory(size)
        return measured or Refused(size, rank.trouble or "windows told nothing, one after another")

    def _turn_unless_too_large(self, size: int) -> bool:
        """Have a size in force, and return whether it is; one that did not fit leaves what is."""
        if not self._words.is_too_large(size):
            self._rank.turn(size)
        return not self._words.is_too_large(size)

    def _fits(self, size: int) -> Generator[int, None, bool]:
        """Ask for one pass on trial, and wait for the answer; where nobody can tell, the steps themselves will."""
        self.probe = probe = Probe(self._ranks, size)
        for _ in range(_MOST_PROBES):
            yield 1
            if probe.fits is not None:
                break
        self.probe = None
        return probe.fits is not False
