"""The course of limiting a training: warm up, search, keep watch, search again. All ranks follow it in step.

It is a generator that yields for how many steps to go on as things are. Whatever decides has been heard from all ranks
(`AllRanks.hear`), so all decide alike; what fails on one rank alone is told to the others as numbers that are none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from energy_plugins.training.limit_apart import apart, both, with_reserve
from energy_plugins.training.limit_check import Kept, holds
from energy_plugins.training.limit_windows import Windows
from energy_plugins.training.peer_waits import PeerWaits
from energy_plugins.training.rank_limits import RankLimits
from energy_plugins.tune import Done, LimitChoice, Measurement, Objective, Task, ZeusCost, begin, chosen, step
from energy_plugins.tune.objective import OBJECTIVES


class Opening(NamedTuple):
    """What one rank tells the others before anything is turned; NaN where it does not know."""

    able: float
    """1 if it can turn and tell."""
    lowest: float
    found: float
    elapsed_s: float
    step_s: float
    remembered: float
    hosts: float
    """1 from the first rank of each machine."""
    most_w: float
    """What all its GPUs may draw together."""
    resolution: float
    """Of its knob; 0 if it has none of its own, as where its GPUs are another rank's too."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked for, but for what only the GPUs know."""

    max_slowdown: float
    objective: str
    eta: float
    search_share: float
    host_power_w: float
    auto: bool = False
    """Whether to take another knob where limits cannot bind, or may not be set."""


class Course:
    """What one rank does, and when.

    Args:
        windows: of the training.
        wanted: what is asked for.
        recall: returns the limit that is remembered for this training, None if there is none.
        remember: told of each choice.
    """

    def __init__(
        self,
        windows: Windows,
        wanted: Wanted,
        recall: Callable[[], float | None],
        remember: Callable[[Kept], None],
    ) -> None:
        self.progress = windows.progress
        self._windows = windows
        self._rank = windows.rank
        self._ranks = windows.ranks
        self._timing = windows.timing
        self._wanted = wanted
        self._recall = recall
        self._remember = remember
        self._remembered: float | None = None
        self._choice: LimitChoice | None = None
        """Of the last search for all ranks, None if its limit was remembered."""
        self._waiting: tuple[int, ...] = ()
        """Ranks that waited for others when limits were chosen."""
        self._later = False
        """Whether a search for those that wait has to wait for its time."""
        self._may_differ = False
        """Whether ranks may have limits of their own."""

    def searching(self) -> Iterator[int]:
        """Yield for how many steps to go on as things are: the whole course of a search."""
        words = yield from self._warm_up()
        if self._wanted.auto:
            words = yield from self._better_knob(words)
        progress = self.progress
        if any(word.able != 1.0 for word in words):
            progress.why = self._rank.why_not or "another rank measures nothing, or may not change its GPU"
            yield from self.looking()
        progress.found = max(word.found for word in words)
        self._windows.found(progress.found)
        # GPUs that two ranks share are turned by one of them, whom nobody told whether the other waits.
        self._may_differ = all(word.resolution > 0 for word in words)
        remembered = words[0].remembered
        while not progress.why:
            task = yield from self._task(words)
            if task is not None:
                yield from self._limiting(task, remembered)
            remembered = math.nan
            self._windows.turn(RankLimits(progress.found))
        yield from self.looking()

    def fixed(self, limit: float) -> Iterator[int]:
        """The same for a limit that was given: nothing is decided, so nobody is asked."""
        self._rank.turn(limit, exact=True)
        yield from self._windows.first_steps()
        yield from self.looking()

    def looking(self) -> Iterator[int]:
        """The same where nothing is turned any more: only the power is still looked at, by each rank for itself."""
        while True:
            yield self._windows.steps_in(self._timing.watch_s)
            self._windows.look()

    # Before a search.

    def _warm_up(self) -> Generator[int, None, list[Opening]]:
        """Let the first steps pass, and hear of all ranks what they can do."""
        first_s, windows = self._timing.first_s, self._windows
        yield from windows.first_steps()
        while True:
            words = self._openings()
            windows.step_s = max(word.step_s for word in words)
            elapsed_s = min(word.elapsed_s for word in words)
            if elapsed_s >= first_s:
                windows.begin()
                return words
            yield windows.steps_in(first_s - elapsed_s)

    def _openings(self) -> list[Opening]:
        rank, knob = self._rank, self._rank.knob
        if self._remembered is None:
            self._remembered = _number(self._recall())
        own = Opening(
            able=float(not rank.why_not),
            lowest=knob.lowest if knob is not None else 0.0,
            found=knob.found if knob is not None else 0.0,
            elapsed_s=rank.elapsed_s,
            step_s=self._windows.step_s,
            remembered=self._remembered,
            hosts=float(self._ranks.who.local_rank == 0),
            most_w=knob.most_w if knob is not None else 0.0,
            resolution=knob.resolution if knob is not None else 0.0,
        )
        return [Opening(*word) for word in self._ranks.hear(own)]

    def _better_knob(self, words: list[Opening]) -> Generator[int, None, list[Opening]]:
        """Have all ranks take the other knob if the first is refused, or if the GPUs draw less than its lowest."""
        if all(word.able == 1.0 for word in words):
            drawn = yield from self._windows.measure(None, self._timing.check_s, back=None)
            if drawn is None or drawn.drawn_w > _CAN_BIND * max(word.lowest for word in words):
                return words
        self._rank.take_other()
        self._remembered = None
        return self._openings()

    def _task(self, words: Sequence[Opening]) -> Generator[int, None, Task | None]:
        """Return what to search for once there is time to, None if there will be none."""
        wanted, timing, progress = self._wanted, self._timing, self.progress
        while True:
            budget_s, planned_s = self._budget_s()
            if not math.isnan(planned_s):
                if budget_s >= timing.least_search_s:
                    break
                progress.why = (
                    f"{wanted.search_share:g} of the training, which is planned to take {planned_s:.0f} s in "
                    f"all, is too short to search{' again' if progress.searches else ''}: see power_limit.search_share"
                )
                return None
            if budget_s >= timing.unplanned_s:
                break
            yield self._windows.steps_in(timing.watch_s)
            self._windows.begin()
        found = max(word.found for word in words)
        return Task(
            limits=(min(max(word.lowest for word in words), found), found),
            start=found,
            max_slowdown=wanted.max_slowdown,
            objective=self._objective(words),
            resolution=max(word.resolution for word in words),
            budget_s=budget_s * timing.shorter,
            host_power_w=wanted.host_power_w * math.fsum(word.hosts for word in words),
            must_bind=True,  # one that binds in no way has saved by chance, and may bind in other work
        )

    def _budget_s(self) -> tuple[float, float]:
        """Return for how long searches may still go on, and how long the training is planned to take. Collective.

        Where its end is not known, that is NaN, and searches may take their share of what has passed.
        """
        own = (self._rank.elapsed_s, _number(self._rank.left_s(self._windows.step_s)))
        elapsed_s, left_s = self._ranks.hear(own)[0]
        planned_s = elapsed_s + left_s
        share_s = self._wanted.search_share * (elapsed_s if math.isnan(planned_s) else planned_s)
        return share_s - self.progress.search_s, planned_s

    def _objective(self, words: Sequence[Opening]) -> Objective:
        if self._wanted.objective == "zeus":
            return ZeusCost.of_all(self._wanted.eta, *(word.most_w for word in words))
        return OBJECTIVES[self._wanted.objective]

    # Searching.

    def _limiting(self, task: Task, remembered: float) -> Iterator[int]:
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
        if not waiting or not self._may_differ:
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


_CAN_BIND = 1.02
"""A limit is lower than the power drawn by more than this, or it could not be told to bind."""
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


def _number(value: float | None) -> float:
    return math.nan if value is None else value
