"""The power limit of one training: begun with it, asked after each step, and put back however it ends."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from energy_plugins.measure.limit_part import LimitPart, TriedLimit
from energy_plugins.training.all_ranks import AllRanks
from energy_plugins.training.guard import TROUBLE
from energy_plugins.training.limits.check import Kept
from energy_plugins.training.limits.course import Course, Wanted
from energy_plugins.training.limits.knob import ClockKnob, LimitKnob, SharedKnob
from energy_plugins.training.limits.memory import Kind, recall, remember
from energy_plugins.training.limits.own_rank import OwnRank
from energy_plugins.training.limits.timing import Timing
from energy_plugins.training.limits.windows import Windows
from energy_plugins.training.measured import Measured
from energy_plugins.training.watch import SumOverRanks
from energy_plugins.tune.limit.task import promise_of

if TYPE_CHECKING:
    from energy_plugins.config import PowerLimitConfig
    from energy_plugins.measure.devices import Gpu
    from energy_plugins.measure.rank_part import Rank


class Limiter:
    """Limits the GPUs of one fit. Every rank has one, and all call `after_step` after the same steps.

    Only `after_step` may raise, and only what the sum over ranks raises.

    Args:
        config: what is asked for.
        measured: the run, None if this rank measures nothing: it takes part all the same.
        who: which rank this is.
        sum_over_ranks: collective where there are several.
        shape: returns what the model and its precision are known by; without it nothing is remembered.
        timing: how long what takes.
    """

    def __init__(  # noqa: PLR0913 - what a training is
        self,
        config: PowerLimitConfig,
        measured: Measured | None,
        *,
        who: Rank,
        sum_over_ranks: SumOverRanks,
        shape: Callable[[], str] | None = None,
        timing: Timing | None = None,
    ) -> None:
        self._config = config
        self._owner = os.getpid()
        self._measured = measured
        self._who = who
        self._shape = shape
        self._gpus = _gpus_of(measured)
        knob, other = _knobs(config, self._gpus)
        self._rank = OwnRank(knob, measured, other)
        if measured is not None and knob is None and measured.place.counts:
            self._rank.lose("no GPU is measured")
        self._rank.open()
        wanted = Wanted(
            max_slowdown=config.max_slowdown,
            objective=config.objective,
            eta=config.eta,
            search_share=config.search_share,
            host_power_w=config.host_power_w,
            # By what all ranks were asked alike: one whose GPUs are another rank's too has no knob, but goes along.
            auto=config.knob == "auto" and config.clocks_unlocked and config.fixed is None,
        )
        self._windows = Windows(self._rank, AllRanks(who, sum_over_ranks), timing or Timing())
        self._course = Course(self._windows, wanted, recall=self._recall, remember=self._remember)
        self._script: Iterator[int] = (
            self._course.searching() if config.fixed is None else self._course.fixed(config.fixed)
        )
        self._next = next(self._script)
        self._is_open = True
        self._binding: bool | None = None
        self._tell()

    def after_step(self) -> None:
        """Count a step, and do what is due after it. Collective now and then, where there are several ranks."""
        self._rank.steps += 1
        if self._rank.steps >= self._next:
            self._next = self._rank.steps + next(self._script)
            self._tell()

    @property
    def limit_w(self) -> float | None:
        """The power limit that holds just now, None if none is held."""
        return None if self._rank.knob is None else self._rank.knob.limit_w

    @property
    def slack(self) -> float | None:
        """By how much steps may become longer yet, as the logarithm of a ratio, under a limit that a search lowered.

        None if none is kept that is lower than the one found. All ranks have the same.
        """
        kept, found = self._course.progress.kept, self._course.progress.found
        if kept is None or found is None or set(kept.of_ranks.each(self._who.world_size)) == {found}:
            return None
        allowed = self._config.max_slowdown
        return math.log1p(allowed) + promise_of(allowed) - math.log1p(kept.slowdown)

    def resume(self) -> None:
        """Have what is being measured begin anew: the steps since the last call were others."""
        self._windows.begin()

    @property
    def wants_phases(self) -> bool:
        """Whether to mark the phases of the step that begins now, to see who waits for whom."""
        return self._windows.wants_phases

    def lose(self, why: str) -> None:
        """Go on without measuring: what was found is put back at once, and the other ranks are told."""
        self._rank.lose(why)
        self._put_back()

    def close(self) -> None:
        """Put back what was found, and have the report say so."""
        if os.getpid() != self._owner or not self._is_open:  # a forked child leaves it to its parent
            return
        self._is_open = False
        if self._course.progress.drawn_w is None:
            self._windows.look()
        self._binding = self._binds()
        self._put_back()
        self._tell()

    def _put_back(self) -> None:
        if self._rank.knob is not None:
            self._rank.knob.close()

    # What is remembered of it, by rank 0.

    def _recall(self) -> float | None:
        kind = self._kind()
        return None if kind is None else recall(kind)

    def _remember(self, kept: Kept) -> None:
        kind = self._kind()
        if kind is not None and kept.limit < (self._course.progress.found or 0.0):
            remember(kind, kept)

    def _kind(self) -> Kind | None:
        """Return what this training is known by, None if nothing is to be remembered here."""
        if self._who.rank != 0 or self._shape is None or self._measured is None or not self._gpus:
            return None
        config = self._config
        try:
            shape = self._shape()
        except TROUBLE:
            return None
        return {
            "gpus": sorted({gpu.name for gpu in self._gpus}),
            "found": None if self._rank.knob is None else [self._rank.knob.found, self._rank.knob.unit],
            "ranks": self._who.world_size,
            "model": shape,
            "samples": self._measured.samples,
            "max_slowdown": config.max_slowdown,
            "objective": [config.objective, config.eta if config.objective == "zeus" else None],
            "host_power_w": config.host_power_w,
        }

    # What is said of it.

    def _tell(self) -> None:
        if self._measured is not None:
            self._measured.meter.limited(self.part())

    def part(self) -> LimitPart:
        """Return what a report says of it."""
        config, progress, rank = self._config, self._course.progress, self._rank
        knob, kept = rank.knob, progress.kept
        part = LimitPart(
            asked=_asked(config),
            unit="W" if knob is None else knob.unit,
            back_end="" if knob is None else knob.back_end,
            found=progress.found if knob is None or not knob.found else knob.found,
            drawn_w=progress.drawn_w,
            searches=progress.searches,
            search_s=progress.search_s,
            turn_s=rank.turn_s,
            tried=tuple(
                TriedLimit(
                    limit=one.limit,
                    seconds=one.seconds,
                    step_time_s=one.measured.step_time_s,
                    step_energy_j=one.measured.step_energy_j,
                    drawn_w=one.measured.drawn_w,
                    ranks=one.ranks,
                )
                for one in progress.tried
            ),
            put_back="" if knob is None else knob.put_back,
            why=rank.why_not or progress.why,
        )
        if kept is not None:
            return replace(
                part,
                chosen=kept.of_ranks.of(self._who.rank),
                by_rank=() if kept.limits is None else kept.limits.each(self._who.world_size),
                source=kept.source,
                expected_saving=kept.saving,
                expected_slowdown=kept.slowdown,
                confidence=kept.confidence,
                binding=kept.binding,
            )
        if config.fixed is not None and not rank.why_not:
            return replace(part, chosen=config.fixed, source="fixed", binding=self._binding)
        return replace(part, advice=self._advice())

    def _binds(self) -> bool | None:
        knob = self._rank.knob
        try:
            return None if knob is None or self._config.fixed is None else knob.binding(self._course.progress.drawn_w)
        except TROUBLE:
            return None

    def _advice(self) -> str:
        """Say what a limit would do that nobody here may set, and what would be needed."""
        knob, drawn_w = self._rank.knob, self._course.progress.drawn_w
        if knob is None or not knob.remedy:
            return ""
        drawn = "" if drawn_w is None else f" and draws {drawn_w:.0f} W in steps"
        told = f"a GPU may draw {knob.most_w / len(self._gpus):g} W{drawn}"
        fixed_w = self._config.fixed
        if fixed_w is not None and drawn_w is not None:
            told += f": a limit of {fixed_w:g} W would {'' if fixed_w < drawn_w else 'not '}bind"
        elif drawn_w is not None and knob.unit == "W":
            told += f": only limits below {min(drawn_w, knob.found):.0f} W would bind"
        return f"{told}; to have one set: {knob.remedy}"


def _gpus_of(measured: Measured | None) -> Sequence[Gpu]:
    """Return the GPUs that this rank limits: those that no other rank does."""
    run = None if measured is None else measured.meter.run
    return () if run is None or measured is None or not measured.place.counts else run.gpus


def _knobs(config: PowerLimitConfig, gpus: Sequence[Gpu]) -> tuple[SharedKnob | None, Callable[[], SharedKnob] | None]:
    """Return what is to be turned, and what makes another to try if that is of no use."""
    if not gpus:
        return None, None
    clocks = partial(ClockKnob, gpus, assume_unlocked=config.clocks_unlocked)
    if config.knob == "clocks" and config.fixed is None:
        return clocks(), None
    return LimitKnob(gpus), clocks if config.knob == "auto" and config.clocks_unlocked else None


def _asked(config: PowerLimitConfig) -> str:
    if config.fixed is not None:
        return f"a limit of {config.fixed:g} W"
    goal = {"energy": "least energy", "energy_delay": "least energy times time", "zeus": "least cost of Zeus"}
    return f"{goal[config.objective]} with steps at most {config.max_slowdown * 100:g} % longer"
