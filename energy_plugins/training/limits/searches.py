"""Searching in a training: a limit for all ranks, a lower one for those that wait, and a watch over what was chosen.

Generators that yield for how many steps to go on as things are, as those of `Course`, whose part this is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator

from energy_plugins.training.limits.apart import apart, both, with_reserve
from energy_plugins.training.limits.check import Kept, holds
from energy_plugins.training.limits.peer_waits import PeerWaits
from energy_plugins.training.limits.rank_limits import RankLimits
from energy_plugins.training.limits.windows import Windows
from energy_plugins.tune import Done, LimitChoice, Measurement, Task, begin, chosen, step


class Searches:
    """What one rank does while limits are tried and kept; all do the same after the same steps.

    Args:
        windows: of the training.
        remember: told of each choice.
        budget_s: returns for how long searches may still go on, and how long the training is planned to take (NaN if
            that is not known). Collective.
    """

    def __init__(
        self, windows: Windows, remember: Callable[[Kept], None], budget_s: Callable[[], tuple[float, float]]
    ) -> None:
        self.progress = windows.progress
        self.may_differ = False
        """Whether ranks may have limits of their own."""
        self._windows = windows
        self._rank = windows.rank
        self._timing = windows.timing
        self._remember = remember
        self._budget_s = budget_s
        self._choice: LimitChoice | None = None
        """Of the last search for all ranks, None if its limit was remembered."""
        self._waiting: tuple[int, ...] = ()
        """Ranks that waited for others when limits were chosen."""
        self._later = False
        """Whether a search for those that wait has to wait for its time."""

    def limiting(self, task: Task, remembered: float) -> Iterator[int]:
        """Search, and keep what was chosen for as long as it suits the work."""
        self._windows.waits, self._choice = PeerWaits(), None
        common = None
        if not math.isnan(remembered):
            common = yield from self._check(task, min(remembered, task.start))
        if common is None:
            common = yield from self._search(task)
        while common is not None:
            kept = yield from self._apart(task, common)
            if kept is None:
                return
            self.progress.kept = kept
            self._remember(kept)
            goes_on = yield from self._watch(kept)
            self.progress.kept = None
            if not goes_on:
                return
            # With one limit for all it is seen who waits.
            self._windows.waits = PeerWaits()
            if (yield from self._measure(RankLimits(common.limit), self._timing.check_s)) is None:
                return

    def _apart(self, task: Task, common: Kept) -> Generator[int, None, Kept | None]:
        """Search for a limit of those ranks alone that wait for a slower one, if any do; None if nothing is kept."""
        self._waiting, self._later = self._windows.waits.who(), False
        waiting = self._waiting
        if not waiting or not self.may_differ:
            return common
        budget_s, planned_s = self._budget_s()
        unplanned = math.isnan(planned_s)
        self._later = unplanned and budget_s < self._timing.unplanned_s
        if self._later or budget_s < self._timing.least_search_s:
            return common
        first = common
        if self._choice is not None:
            first = _kept(chosen(with_reserve(task), self._choice.measurements))
        own = apart(task, first, budget_s * self._timing.shorter)
        choice = yield from self._windows_of(own, lambda limit: RankLimits(limit, waiting, first.limit))
        if choice is None:
            return None
        kept = both(first, choice, waiting)
        return kept if choice.limit != own.start and kept.saving > common.saving else common

    def _check(self, task: Task, limit: float) -> Generator[int, None, Kept | None]:
        """Compare a remembered limit with the one found, and return it if it still does what it should."""
        measured = []
        for each in (task.start, limit, task.start):
            one = yield from self._windows.measure(RankLimits(each), self._timing.check_s, back=RankLimits(task.start))
            if one is None:
                return None
            measured.append(one)
        return holds(task, limit, measured)

    def _search(self, task: Task) -> Generator[int, None, Kept | None]:
        self._choice = yield from self._windows_of(task, RankLimits)
        return None if self._choice is None else _kept(self._choice)

    def _windows_of(
        self, task: Task, limits: Callable[[float], RankLimits]
    ) -> Generator[int, None, LimitChoice | None]:
        """Measure whatever a search asks for, and return what it chooses; ``limits`` makes ranks' of what it tries."""
        self.progress.searches += 1
        state, action = begin(task)
        while True:
            seconds = action.seconds / self._timing.shorter
            measured = yield from self._windows.measure(limits(action.limit), seconds, back=limits(task.start))
            if measured is None:
                self.progress.why = self._rank.trouble or "windows told nothing, one after another"
                return None
            state, following = step(state, measured)
            if isinstance(following, Done):
                return following.choice
            action = following

    def _watch(self, kept: Kept) -> Generator[int, None, bool]:
        """Go on as long as steps take and cost what is to be expected; return whether only those who wait need a look.

        They do where others wait than before, or where there was no time to search for their limit, and now is.
        """
        before: Measurement | None = None
        while True:
            self._windows.waits = PeerWaits()
            now = yield from self._measure(kept.of_ranks, self._timing.watch_s)
            if now is None or (before is not None and self._differs(before, now)):
                return False
            if not set(self._windows.waits.who()) <= set(self._waiting):
                return True
            if self._later and self._budget_s()[0] >= self._timing.unplanned_s:
                return True
            before = now

    def _measure(self, limits: RankLimits, seconds: float) -> Generator[int, None, Measurement | None]:
        """Measure steps outside of searches."""
        measured = yield from self._windows.measure(limits, seconds, back=None)
        if measured is None:
            self.progress.why = self._rank.trouble or "nothing could be measured any more"
        return measured

    def _differs(self, before: Measurement, now: Measurement) -> bool:
        """Tell whether this is other work than a minute ago. What drifts more slowly is followed."""
        pairs = (
            (before.step_time_s, now.step_time_s, now.step_time_sem),
            (before.step_energy_j, now.step_energy_j, now.step_energy_sem),
        )
        return any(abs(new - old) > max(self._timing.tolerance * old, _SURELY * sem) for old, new, sem in pairs)


_SURELY = 4.0
"""Standard errors that are no accident."""


def _kept(choice: LimitChoice) -> Kept:
    return Kept(
        limit=choice.limit,
        saving=choice.expected_saving,
        slowdown=choice.expected_slowdown,
        confidence=choice.confidence,
        binding=choice.binding,
        source="search",
    )
