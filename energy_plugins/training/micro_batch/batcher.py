"""The micro-batch of one training: what is asked for, whether it may be had, and what it is at the moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from energy_plugins.measure.micro_batch_part import MicroBatchPart
from energy_plugins.training.all_ranks import AllRanks
from energy_plugins.training.choice_memory import Kind
from energy_plugins.training.guard import warn
from energy_plugins.training.limits.timing import Timing
from energy_plugins.training.limits.windows import Windows
from energy_plugins.training.measured import Measured
from energy_plugins.training.micro_batch.allowed_sizes import AllowedSizes
from energy_plugins.training.micro_batch.comparisons import Comparisons
from energy_plugins.training.micro_batch.course import MicroBatchCourse
from energy_plugins.training.micro_batch.doubt import Doubt, GradientsDifferError
from energy_plugins.training.micro_batch.followed_script import FollowedScript
from energy_plugins.training.micro_batch.foreseen import foresee
from energy_plugins.training.micro_batch.later_checks import CompareGroup, is_due
from energy_plugins.training.micro_batch.memory import forget, kind_of, recall, remember
from energy_plugins.training.micro_batch.own_sizes import OwnSizes
from energy_plugins.training.micro_batch.plan import MicroBatchPlan
from energy_plugins.training.micro_batch.probe import Probe
from energy_plugins.training.micro_batch.searched import Searched, ran_out_of_memory
from energy_plugins.training.micro_batch.told import Known, told
from energy_plugins.training.watch import SumOverRanks
from energy_plugins.tune.micro_batch.sizes import MOST_SIZES

if TYPE_CHECKING:
    from energy_plugins.config import MicroBatchConfig
    from energy_plugins.measure.rank_part import Rank
    from energy_plugins.training.working_set.followed import TrainingStep


class MicroBatcher:
    """Decides on the micro-batch of one training. Every rank has one, and all call it after the same steps.

    Whoever runs the batches asks for `plan` before each optimizer step, calls `consider` with windows while nothing is
    decided, and `after_step` after each. Only what the sum over ranks raises is raised.

    Args:
        config: what is asked for.
        measured: the run, None if this rank measures nothing: it takes part all the same.
        who: which rank this is.
        sum_over_ranks: collective where there are several.
        why_not: why this rank's training must be left as it is; empty if nothing is known against it.
        most_sizes: the most that may be tried.
        optimizer: the name of its class; None if that is not known.
        shape: returns what the model, its optimizer, precision and samples are known by; without it nothing is
            remembered.
        row_is_step: whether a row of the report is an optimizer step; if not, it is a batch of the loader.
        training_step: returns what is known of a step of the training, once there is a window: so it is foreseen what
            fits into memory. Without it that is found out.
        timing: how long what takes.
    """

    def __init__(  # noqa: PLR0913 - what a training is
        self,
        config: MicroBatchConfig,
        measured: Measured | None,
        *,
        who: Rank,
        sum_over_ranks: SumOverRanks,
        why_not: str = "",
        most_sizes: int = MOST_SIZES,
        optimizer: str | None = None,
        shape: Callable[[], str] | None = None,
        row_is_step: bool = False,
        training_step: Callable[[], TrainingStep] | None = None,
        timing: Timing | None = None,
    ) -> None:
        self._config = config
        self._measured = measured
        self._ranks = AllRanks(who, sum_over_ranks)
        self._rank = OwnSizes(measured)
        self._optimizer = optimizer
        self._shape = shape
        self._row_is_step = row_is_step
        self._timing = timing or Timing()
        self._comparisons = Comparisons(self._rank, allow_batch_statistics=config.allow_batch_statistics)
        self._sizes = AllowedSizes(
            config,
            self._ranks,
            self._comparisons,
            lambda setting: foresee(setting, training_step, self._measured, self._ranks),
            why_not=why_not,
            most_sizes=most_sizes,
        )
        self._course: MicroBatchCourse | None = None
        self._script = FollowedScript()
        self._kind: Kind | None = None
        self._has_checked = False
        self._with_it = 0
        """Optimizer steps with the size that was chosen."""
        self._doubt: Doubt | None = None
        """What all ranks have heard of."""
        self.has_said = False
        """Whether it has said itself why the user's setting is in force."""
        self.grown = ""
        """What was changed in the training itself before it began, as a report says it first."""
        self._tell()

    @property
    def undecided(self) -> bool:
        """Whether windows are still to be considered."""
        return self._sizes.may_change is None

    @property
    def plan(self) -> MicroBatchPlan | None:
        """What to do with the batches of the next optimizer step; None is what the user does."""
        setting, size = self.setting, self._rank.size
        return None if setting is None or size is None or size == setting.batch else replace(setting, size=size)

    @property
    def setting(self) -> MicroBatchPlan | None:
        """What the user does, as a plan; None while it is not known."""
        return self._sizes.setting

    @property
    def size(self) -> int | None:
        """Samples that go through the model at once; None while it is not known how many a batch has."""
        plan = self.plan or self.setting
        return None if plan is None else plan.size

    @property
    def settled(self) -> bool:
        """Whether the micro-batch is to stay as it is."""
        searched = None if self._course is None else self._course.searched
        return not self.undecided and (searched is None or (searched.is_over and not searched.is_checking))

    @property
    def wants_windows(self) -> bool:
        """Whether to keep the batches of the windows that begin, and hand them to `consider` or `probe`."""
        return self.undecided or self._probe is not None

    @property
    def _probe(self) -> Probe | None:
        return None if self._course is None else self._course.probe

    def probe(self, try_pass: Callable[[MicroBatchPlan], bool]) -> None:
        """Find out by this window whether a size fits, if that is asked. Collective as long as `wants_windows`.

        Args:
            try_pass: runs one pass of a plan on trial, on all ranks at the same time: `one_pass`.
        """
        probe, setting = self._probe, self.setting
        if probe is not None and setting is not None:
            plan = replace(setting, size=probe.size)
            probe.look(lambda: try_pass(plan))

    def consider(self, batch: int | None, accumulation: int, compare: CompareGroup, window: Sequence[Any]) -> None:
        """Look at a window, and decide what may be done. Collective as long as it is `undecided`.

        Args:
            batch: samples of each of its batches; None if that cannot be told.
            accumulation: how many batches make an optimizer step.
            compare: runs batches of this window both ways, on all ranks at the same time.
            window: its batches, as far as they have come.
        """
        if not self.undecided:
            return
        self._sizes.look(batch, accumulation, compare, window)
        if self._sizes.may_change and self.setting is not None:
            self._begin(self.setting)
        self._tell()

    @property
    def smaller(self) -> list[int]:
        """Sizes that a search may use below the user's, rising: to go down to if that does not fit."""
        return [] if self._course is None else self._sizes.smaller

    def allows(self, group: Sequence[Any], plan: MicroBatchPlan, compare: CompareGroup) -> bool:
        """Tell whether batches may run by ``plan``, see `LaterChecks`; if not they are to run as the user has it.

        Not collective: it is one rank's own affair, and the others hear later.
        """
        return self._comparisons.allow(group, plan, compare, due=self.settled and is_due(self._with_it + 1))

    def after_step(self) -> None:
        """Count an optimizer step, and do what is due after it. Collective now and then, where there are several."""
        self._rank.steps += 1
        if self._measured is not None:
            self._measured.stepped()
        if self._rank.doubt is not None and self._doubt is None and self._ranks.who.world_size == 1:
            self._leave(self._rank.doubt)  # of several ranks all do so together, when they have heard
        was_settled = self.settled
        if self._heed(lambda: self._script.go_on(self._rank.steps)):
            if self.settled and self._course is not None:
                self._conclude(self._course.searched, is_new=not was_settled)
            self._tell()
        self._with_it = self._with_it + 1 if self.settled and self.plan is not None else 0

    def check_beside(self, slack: float) -> None:
        """Begin, once in a training, to compare the choice with the sizes beside it under the limit found since.

        All ranks call it after the same step; ``slack`` is `Limiter.slack`.
        """
        course = self._course
        if self._has_checked or course is None or course.searched.choice is None or course.searched.why:
            return
        self._has_checked = True
        self._heed(lambda: self._script.begin(course.checking(slack), self._rank.steps))

    def out_of_memory(self, size: int) -> None:
        """Hear that a size did not fit after all; this rank goes on with a smaller one, and the others will hear.

        That is the user's own, or if it is this that did not fit, the next below it.
        """
        self._rank.failed = min(size, self._rank.failed or size)
        below, setting = [one for one in self.smaller if one < size], self.setting
        self._rank.size = below[-1] if below and setting is not None and size <= setting.batch else None

    def lose(self, why: str) -> None:
        """Go on without measuring: a search ends, and the other ranks are told."""
        self._rank.lose(why)
        self._measured = None

    def close(self) -> None:
        """Have the report say what became of it."""
        later = self._comparisons.later
        later.forget()
        if later.doubt is not None and self._doubt is None:
            self._leave(later.doubt, is_heard=False)
        elif self._rank.failed and self.plan is None and self.settled and self._course is not None:
            self._course.searched.leave(ran_out_of_memory(self._rank.failed))
            self._conclude(self._course.searched, is_new=False, is_heard=False)
        self._tell()

    def _begin(self, setting: MicroBatchPlan) -> None:
        """Begin with what has been found to be possible."""
        measured, fixed = self._measured, self._config.size
        if measured is not None and not self._row_is_step:
            measured.group_steps(setting.accumulation)
        self._kind = kind_of(measured, self._ranks.who, self._shape, setting) if fixed is None else None
        self._course = course = MicroBatchCourse(
            Windows(self._rank, self._ranks, self._timing),
            self._rank,
            share=setting.share,
            search_share=self._config.search_share,
            remembered=recall(self._kind),
            checked_s=self._comparisons.seconds,
        )
        if fixed is None:
            script = course.searching(setting.batch, self._sizes.sizes, self._sizes.foreseen)
        else:
            script = course.keeping(setting.batch, fixed)
        self._script.begin(script, self._rank.steps)

    def _conclude(self, searched: Searched, *, is_new: bool, is_heard: bool = True) -> None:
        """Keep what a search chose for the next training of this kind, unless it is the user's or could not stay."""
        choice, setting = searched.choice, self.setting
        had_begun = choice is not None or not is_new
        speaks = self._ranks.who.rank == 0 or not is_heard
        if searched.why and had_begun and speaks and not self.has_said:
            self.has_said = True
            warn(f"the micro-batch is left alone from now on: {searched.why}")
        if choice is None or setting is None:
            return
        if searched.why or choice.size == setting.batch:
            forget(self._kind)
        elif is_new:
            remember(self._kind, choice.size)

    def _heed(self, go_on: Callable[[], bool | None]) -> bool:
        """Go on with the course, or hear that a rank has a doubt; return whether there is news. Collective at times."""
        try:
            return bool(go_on())
        except GradientsDifferError as error:
            self._leave(error.doubt)
            return False

    def _leave(self, doubt: Doubt, *, is_heard: bool = True) -> None:
        """Go back to the user's setting for good, on all ranks that have heard of it: one of them says so.

        So does the one that knows what was raised.
        """
        self._doubt, self._rank.size = doubt, None
        self._script.end()
        forget(self._kind)
        if self._course is not None:
            self._course.searched.leave(doubt.why())
            self._course.probe = None  # nobody waits for its answer
        self._tell()
        if self._ranks.who.rank == 0 or not is_heard or doubt.raised:
            self.has_said = True
            warn(f"the micro-batch is left alone from now on: {doubt.why()}")

    def _tell(self) -> None:
        if self._measured is not None:
            self._measured.meter.micro_batched(self.part())

    def part(self) -> MicroBatchPart:
        """Return what a report says of it."""
        sizes, comparisons = self._sizes, self._comparisons
        return told(
            Known(
                fixed=self._config.size,
                setting=sizes.setting,
                grown=self.grown,
                check=comparisons.furthest,
                checks=comparisons.later.made,
                check_s=comparisons.seconds,
                doubt=self._doubt or comparisons.later.doubt,
                why=sizes.why,
                reasons=(*sizes.reasons, *sizes.foreseen.sentences),
                optimizer=self._optimizer,
                ranks=self._ranks.who.world_size,
                fits=sizes.foreseen.most,
            ),
            None if self._course is None else self._course.searched,
        )
