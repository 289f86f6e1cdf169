"""The course of limiting a training: warm up, search, keep watch, search again. All ranks follow it in step.

It is a generator that yields for how many steps to go on as things are. Whatever decides has been heard from all ranks
(`AllRanks.hear`), so all decide alike; what fails on one rank alone is told to the others as numbers that are none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from energy_plugins.errors import WindowError
from energy_plugins.training.all_ranks import AllRanks
from energy_plugins.training.bench import Bench
from energy_plugins.training.limit_check import Kept, holds
from energy_plugins.training.step_window import Told, WindowNs
from energy_plugins.tune import Done, LimitChoice, Measurement, Objective, Task, ZeusCost, begin, step
from energy_plugins.tune.objective import OBJECTIVES


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The times of a course, in seconds of training unless said otherwise."""

    first_steps: int = 10
    """Steps at the beginning that are left out: caches fill, kernels are chosen and compiled."""
    pace_steps: int = 5
    """After them, by which it is told how long a step takes."""
    first_s: float = 3.0
    """They last at least so long."""
    settle_s: float = 0.5
    """From a change of the limit until steps count again; the regulator of a GPU needs a few tenths of it."""
    late_s: float = 1.5
    """After which the figures of a step are there, as a rule."""
    again_s: float = 0.5
    """Between looks for figures that are not."""
    looks: int = 40
    shorter: float = 1.0
    """By which windows of a search are divided: for trials, where nothing is noisy."""
    least_steps: int = 3
    """Of a window: fewer say nothing of their scatter."""
    tries: int = 3
    """Windows that told nothing, one after the other, before the search is given up."""
    check_s: float = 5.0
    """Length of the windows in which a remembered limit is checked."""
    watch_s: float = 60.0
    """Length of the windows in which the choice is watched."""
    tolerance: float = 0.05
    """Share by which time or energy of a step may differ from what was expected before another search begins."""
    least_search_s: float = 15.0
    """A search that may take less is not begun: it could try no limit."""
    unplanned_s: float = 60.0
    """What a search may take where the end of a training is not known: it begins once that is its share."""


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


@dataclass(frozen=True)
class Tried:
    """A window, and what all ranks measured in it."""

    limit: float
    seconds: float
    measured: Measurement


@dataclass
class Progress:
    """How far a course has come, for reports."""

    kept: Kept | None = None
    tried: list[Tried] = field(default_factory=list)
    searches: int = 0
    found: float | None = None
    drawn_w: float | None = None
    """Lately, of the GPU that draws most."""
    why: str = ""
    """Why no limit is kept."""

    search_s: float = 0.0
    """What windows of searches have taken so far, those that told nothing included."""


class Course:
    """What one rank does, and when.

    Args:
        bench: this rank's.
        ranks: all of them.
        wanted: what is asked for.
        timing: how long what takes.
        recall: returns the limit that is remembered for this training, None if there is none.
        remember: told of each choice.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - whom it asks, and for what
        self,
        bench: Bench,
        ranks: AllRanks,
        wanted: Wanted,
        timing: Timing,
        recall: Callable[[], float | None],
        remember: Callable[[Kept], None],
    ) -> None:
        self.progress = Progress()
        self._bench = bench
        self._ranks = ranks
        self._wanted = wanted
        self._timing = timing
        self._recall = recall
        self._remember = remember
        self._limit: float | None = None
        self._remembered: float | None = None
        self._free_step = 0
        """From which on steps may be counted."""
        self._closed_ns = bench.now_ns()
        """The end of the last window."""
        self._step_s = 1.0
        """What a step takes, on the slowest rank."""

    def searching(self) -> Iterator[int]:
        """Yield for how many steps to go on as things are: the whole course of a search."""
        words = yield from self._warm_up()
        if self._wanted.auto:
            words = yield from self._better_knob(words)
        progress, bench = self.progress, self._bench
        if any(word.able != 1.0 for word in words):
            progress.why = bench.why_not or "another rank measures nothing, or may not change its GPU"
            yield from self.looking()
        progress.found = self._limit = max(word.found for word in words)
        remembered = words[0].remembered
        while not progress.why:
            task = yield from self._task(words)
            kept = None
            if task is not None and not math.isnan(remembered):
                kept = yield from self._check(task, min(remembered, task.start))
            if task is not None and kept is None:
                kept = yield from self._search(task)
            remembered = math.nan
            if kept is not None:
                progress.kept = kept
                self._remember(kept)
                yield from self._watch(kept)
                progress.kept = None
            self._turn(progress.found)
        yield from self.looking()

    def fixed(self, limit: float) -> Iterator[int]:
        """The same for a limit that was given: nothing is decided, so nobody is asked."""
        self._bench.turn(limit, exact=True)
        yield from self._first_steps()
        yield from self.looking()

    def looking(self) -> Iterator[int]:
        """The same where nothing is turned any more: only the power is still looked at, by each rank for itself."""
        while True:
            yield self._steps_in(self._timing.watch_s)
            self.look()

    def look(self) -> None:
        """See what this rank's GPUs have drawn since the last look."""
        closed_ns = self._bench.now_ns() - round(self._timing.late_s * 1e9)
        told = self._bench.told(self._until(closed_ns), self._timing.least_steps)
        if told.known:
            self.progress.drawn_w = told.drawn_w
            self._closed_ns = closed_ns

    # Before a search.

    def _warm_up(self) -> Generator[int, None, list[Opening]]:
        """Let the first steps pass, and hear of all ranks what they can do."""
        timing, bench = self._timing, self._bench
        yield from self._first_steps()
        while True:
            words = self._openings()
            self._step_s = max(word.step_s for word in words)
            elapsed_s = min(word.elapsed_s for word in words)
            if elapsed_s >= timing.first_s:
                self._free_step, self._closed_ns = bench.steps, bench.now_ns()
                return words
            yield self._steps_in(timing.first_s - elapsed_s)

    def _openings(self) -> list[Opening]:
        bench, knob = self._bench, self._bench.knob
        if self._remembered is None:
            self._remembered = _number(self._recall())
        own = Opening(
            able=float(not bench.why_not),
            lowest=knob.lowest if knob is not None else 0.0,
            found=knob.found if knob is not None else 0.0,
            elapsed_s=bench.elapsed_s,
            step_s=self._step_s,
            remembered=self._remembered,
            hosts=float(self._ranks.who.local_rank == 0),
            most_w=knob.most_w if knob is not None else 0.0,
            resolution=knob.resolution if knob is not None else 0.0,
        )
        return [Opening(*word) for word in self._ranks.hear(own)]

    def _better_knob(self, words: list[Opening]) -> Generator[int, None, list[Opening]]:
        """Have all ranks take the other knob if the first is refused, or if the GPUs draw less than its lowest."""
        if all(word.able == 1.0 for word in words):
            drawn = yield from self._window(self._limit, self._timing.check_s, back=None)
            if drawn is None or drawn.drawn_w > _CAN_BIND * max(word.lowest for word in words):
                return words
        self._bench.take_other()
        self._remembered = None
        return self._openings()

    def _task(self, words: Sequence[Opening]) -> Generator[int, None, Task | None]:
        """Return what to search for once there is time to, None if there will be none."""
        wanted, timing, progress = self._wanted, self._timing, self.progress
        while True:
            own = (self._bench.elapsed_s, _number(self._bench.left_s(self._step_s)))
            elapsed_s, left_s = self._ranks.hear(own)[0]
            spent_s = progress.search_s
            if not math.isnan(left_s):
                budget_s = wanted.search_share * (elapsed_s + left_s) - spent_s
                if budget_s >= timing.least_search_s:
                    break
                progress.why = (
                    f"{wanted.search_share:g} of the training, which is planned to take {elapsed_s + left_s:.0f} s in "
                    f"all, is too short to search{' again' if progress.searches else ''}: see power_limit.search_share"
                )
                return None
            budget_s = wanted.search_share * elapsed_s - spent_s
            if budget_s >= timing.unplanned_s:
                break
            yield self._steps_in(timing.watch_s)
            self._closed_ns, self._free_step = self._bench.now_ns(), self._bench.steps
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

    def _objective(self, words: Sequence[Opening]) -> Objective:
        if self._wanted.objective == "zeus":
            return ZeusCost.of_all(self._wanted.eta, *(word.most_w for word in words))
        return OBJECTIVES[self._wanted.objective]

    # Searching.

    def _check(self, task: Task, limit: float) -> Generator[int, None, Kept | None]:
        """Compare a remembered limit with the one found, and return it if it still does what it should."""
        measured = []
        for each in (task.start, limit, task.start):
            one = yield from self._window(each, self._timing.check_s, back=task.start)
            if one is None:
                return None
            measured.append(one)
        return holds(task, limit, measured)

    def _search(self, task: Task) -> Generator[int, None, Kept | None]:
        self.progress.searches += 1
        state, action = begin(task)
        while True:
            seconds = action.seconds / self._timing.shorter
            measured = yield from self._window(action.limit, seconds, back=task.start)
            if measured is None:
                self.progress.why = self._bench.trouble or "windows told nothing, one after another"
                return None
            state, following = step(state, measured)
            if isinstance(following, Done):
                return _kept(following.choice)
            action = following

    def _watch(self, kept: Kept) -> Iterator[int]:
        """Go on as long as steps take and cost what is to be expected."""
        before: Measurement | None = None
        while True:
            now = yield from self._window(kept.limit, self._timing.watch_s, back=None)
            if now is None:
                self.progress.why = self._bench.trouble or "nothing could be measured any more"
                return
            if before is not None and self._differs(before, now):
                return
            before = now

    def _differs(self, before: Measurement, now: Measurement) -> bool:
        """Tell whether this is other work than a minute ago. What drifts more slowly is followed."""
        pairs = (
            (before.step_time_s, now.step_time_s, now.step_time_sem),
            (before.step_energy_j, now.step_energy_j, now.step_energy_sem),
        )
        return any(abs(new - old) > max(self._timing.tolerance * old, _SURELY * sem) for old, new, sem in pairs)

    # Windows.

    def _window(
        self, limit: float | None, seconds: float, *, back: float | None
    ) -> Generator[int, None, Measurement | None]:
        """Measure steps at a limit for about so long; then go ``back``, if anywhere. None if nobody knows of any."""
        timing, bench = self._timing, self._bench
        for attempt in range(timing.tries):
            if limit is not None:
                self._turn(limit)
            # The GPU may still be at work on the last of them when the window is closed: where it is behind by more,
            # more steps are needed.
            count = (max(math.ceil(seconds / self._step_s), timing.least_steps) + 1) * 2**attempt
            yield max(self._free_step + count - bench.steps, 1)
            window = self._until(bench.now_ns())
            if back is not None:
                self.progress.search_s += count * self._step_s
            self._closed_ns, self._free_step = window.closed_ns, bench.steps
            if back is not None:
                self._turn(back)
            words = yield from self._figures(window)
            measured = _together(words)
            if measured is None:
                continue
            self._step_s = measured.step_time_s
            if count * measured.step_time_s >= _LONG_ENOUGH * seconds:
                self.progress.drawn_w = measured.drawn_w
                if back is not None and limit is not None:
                    self.progress.tried.append(Tried(limit, count * measured.step_time_s, measured))
                return measured
        return None

    def _figures(self, window: WindowNs) -> Generator[int, None, list[Told]]:
        """Return what all ranks tell of a window, once their figures reach to its end."""
        wait_s = self._timing.late_s
        words: list[Told] = []
        for _ in range(self._timing.looks):
            yield self._steps_in(wait_s)
            own = self._bench.told(window, self._timing.least_steps)
            words = [Told(*word) for word in self._ranks.hear(own)]
            if all(word.covered for word in words):
                break
            wait_s = self._timing.again_s
        return words

    def _turn(self, limit: float) -> None:
        if limit != self._limit:
            self._limit = limit
            self._bench.turn(limit)
            self._free_step = self._bench.steps + self._steps_in(self._timing.settle_s)

    def _until(self, closed_ns: int) -> WindowNs:
        """Return the window from the last one's end, or the last change of the limit, to a time."""
        return WindowNs(self._closed_ns, closed_ns, self._bench.turned_ns + round(self._timing.settle_s * 1e9))

    def _steps_in(self, seconds: float) -> int:
        return max(math.ceil(seconds / self._step_s), 1)

    def _first_steps(self) -> Iterator[int]:
        """Let them pass, and see how long those after them take."""
        timing, bench = self._timing, self._bench
        yield timing.first_steps
        began_ns = bench.now_ns()
        yield timing.pace_steps
        self._step_s = max((bench.now_ns() - began_ns) * 1e-9 / timing.pace_steps, 1e-6)


_LONG_ENOUGH = 0.5
"""Share of what was asked for that a window must last: steps may turn out shorter than they were."""
_CAN_BIND = 1.02
"""A limit is lower than the power drawn by more than this, or it could not be told to bind."""
_SURELY = 4.0
"""Standard errors that are no accident."""


def _together(words: Sequence[Told]) -> Measurement | None:
    """Return what all ranks measured of steps that they made together, None if one of them measured nothing."""
    if not all(word.known for word in words):
        return None
    slowest = max(words, key=lambda word: word.time_s)
    try:
        return Measurement(
            step_time_s=slowest.time_s,
            step_energy_j=math.fsum(word.energy_j for word in words),
            step_time_sem=slowest.time_sem,
            step_energy_sem=math.hypot(*(word.energy_sem for word in words)),
            drawn_w=max(word.drawn_w for word in words),
        )
    except WindowError:
        return None


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
