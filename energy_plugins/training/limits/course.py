"""The course of limiting a training: warm up, then search (`Searches`) for as long as there is time and cause.

All ranks follow it in step. It is a generator that yields for how many steps to go on as things are. Whatever decides
has been heard from all ranks (`AllRanks.hear`), so all decide alike; what fails on one rank alone is told to the others
as numbers that are none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from energy_plugins.training.limits.check import Kept
from energy_plugins.training.limits.rank_limits import RankLimits
from energy_plugins.training.limits.searches import Searches
from energy_plugins.training.limits.windows import Windows
from energy_plugins.tune import Objective, Task, ZeusCost
from energy_plugins.tune.limit.objective import OBJECTIVES


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
        self._searches = Searches(windows, remember, self._budget_s)
        self._remembered: float | None = None

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
        self._searches.may_differ = all(word.resolution > 0 for word in words)
        remembered = words[0].remembered
        while not progress.why:
            task = yield from self._task(words)
            if task is not None:
                yield from self._searches.limiting(task, remembered)
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


_CAN_BIND = 1.02
"""A limit is lower than the power drawn by more than this, or it could not be told to bind."""


def _number(value: float | None) -> float:
    return math.nan if value is None else value
