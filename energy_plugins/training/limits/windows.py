"""Windows of training steps under one limit, measured by all ranks together."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence

from energy_plugins.errors import WindowError
from energy_plugins.training.all_ranks import AllRanks
from energy_plugins.training.limits.own_rank import OwnRank
from energy_plugins.training.limits.peer_waits import PeerWaits
from energy_plugins.training.limits.progress import Progress, Tried
from energy_plugins.training.limits.rank_limits import RankLimits
from energy_plugins.training.limits.timing import Timing
from energy_plugins.training.step_window import Told, WindowNs
from energy_plugins.tune import Measurement

_MARKED = 20
"""Steps of a window whose phases are marked, about: enough to tell whether ranks wait for others."""
_LONG_ENOUGH = 0.5
"""Share of what was asked for that a window must last: steps may turn out shorter than they were."""


class Windows:
    """Cuts the steps of a training into windows; what yields, yields for how many steps to go on as things are.

    All ranks cut them after the same steps, and hear the same of each.

    Args:
        rank: this one.
        ranks: all of them.
        timing: how long what takes.
    """

    def __init__(self, rank: OwnRank, ranks: AllRanks, timing: Timing) -> None:
        self.rank = rank
        self.ranks = ranks
        self.timing = timing
        self.progress = Progress()
        self.step_s = 1.0
        """What a step takes, on the slowest rank."""
        self.waits = PeerWaits()
        """Of the windows at the limits that trials are compared with, since somebody began anew."""
        self._limits: tuple[float, ...] = ()
        """In force, of each rank."""
        self._mark_every = 0
        self._free_step = 0
        """From which on steps may be counted."""
        self._closed_ns = rank.now_ns()
        """The end of the last window."""

    def first_steps(self) -> Iterator[int]:
        """Let them pass, and see how long those after them take."""
        timing, rank = self.timing, self.rank
        yield timing.first_steps
        began_ns = rank.now_ns()
        yield timing.pace_steps
        self.step_s = max((rank.now_ns() - began_ns) * 1e-9 / timing.pace_steps, 1e-6)

    def begin(self) -> None:
        """Have the next window begin now."""
        self._free_step, self._closed_ns = self.rank.steps, self.rank.now_ns()

    @property
    def wants_phases(self) -> bool:
        """Whether to mark the phases of the step that begins now: the same on all ranks."""
        return self._mark_every > 0 and self.rank.steps % self._mark_every == 0

    def found(self, limit: float) -> None:
        """Take note of the limit that is in force."""
        self._limits = RankLimits(limit).each(self.ranks.who.world_size)

    def turn(self, limits: RankLimits) -> None:
        """Set limits, if they are others; all ranks wait until they have settled, on whomever."""
        who = self.ranks.who
        before, self._limits = self._limits, limits.each(who.world_size)
        if before == self._limits:
            return
        if before and before[who.rank] == self._limits[who.rank]:
            self.rank.let_settle()
        else:
            self.rank.turn(self._limits[who.rank])
        self._free_step = self.rank.steps + self.steps_in(self.timing.settle_s)

    def steps_in(self, seconds: float) -> int:
        """Return how many steps are made in so long, one at least."""
        return max(math.ceil(seconds / self.step_s), 1)

    def look(self) -> None:
        """See what this rank's GPUs have drawn since the last look, whatever the others do."""
        closed_ns = self.rank.now_ns() - round(self.timing.late_s * 1e9)
        told = self.rank.told(self._until(closed_ns), self.timing.least_steps)
        if told.known:
            self.progress.drawn_w = told.drawn_w
            self._closed_ns = closed_ns

    def measure(
        self, limits: RankLimits | None, seconds: float, *, back: RankLimits | None
    ) -> Generator[int, None, Measurement | None]:
        """Measure steps at limits for about so long; then go ``back``, if anywhere. None if nobody knows of any."""
        timing, rank = self.timing, self.rank
        for attempt in range(timing.tries):
            if limits is not None:
                self.turn(limits)
            tried = self._limits
            # The GPU may still be at work on the last of them when the window is closed: where it is behind by more,
            # more steps are needed.
            count = (max(math.ceil(seconds / self.step_s), timing.least_steps) + 1) * 2**attempt
            self._mark_every = max(count // _MARKED, 1) if self.ranks.who.world_size > 1 else 0
            yield max(self._free_step + count - rank.steps, 1)
            self._mark_every = 0
            window = self._until(rank.now_ns())
            self._closed_ns, self._free_step = window.closed_ns, rank.steps
            if back is not None:
                self.progress.search_s += count * self.step_s
                self.turn(back)
            words = yield from self._figures(window)
            measured = _together(words, () if limits is None else limits.ranks)
            if measured is None:
                continue
            self.step_s = measured.step_time_s
            if count * measured.step_time_s >= _LONG_ENOUGH * seconds:
                self.progress.drawn_w = max(word.drawn_w for word in words)
                if back is None or tried == self._limits:
                    self.waits.add(words)
                if back is not None and limits is not None:
                    took_s = count * measured.step_time_s
                    self.progress.tried.append(Tried(limits.limit, took_s, measured, limits.ranks))
                return measured
        return None

    def _figures(self, window: WindowNs) -> Generator[int, None, list[Told]]:
        """Return what all ranks tell of a window, once their figures reach to its end."""
        wait_s = self.timing.late_s
        words: list[Told] = []
        for _ in range(self.timing.looks):
            yield self.steps_in(wait_s)
            own = self.rank.told(window, self.timing.least_steps)
            words = [Told(*word) for word in self.ranks.hear(own)]
            if all(word.covered for word in words):
                break
            wait_s = self.timing.again_s
        return words

    def _until(self, closed_ns: int) -> WindowNs:
        """Return the window from the last one's end, or the last change of the limit, to a time."""
        return WindowNs(self._closed_ns, closed_ns, self.rank.turned_ns + round(self.timing.settle_s * 1e9))


def _together(words: Sequence[Told], limited: Sequence[int]) -> Measurement | None:
    """Return what all ranks measured of steps that they made together, None if one of them measured nothing.

    The power drawn is that of those who are ``limited``, of all if nobody is named.
    """
    if not all(word.known for word in words):
        return None
    slowest = max(words, key=lambda word: word.time_s)
    try:
        return Measurement(
            step_time_s=slowest.time_s,
            step_energy_j=math.fsum(word.energy_j for word in words),
            step_time_sem=slowest.time_sem,
            step_energy_sem=math.hypot(*(word.energy_sem for word in words)),
            drawn_w=max(words[rank].drawn_w for rank in limited or range(len(words))),
        )
    except WindowError:
        return None
