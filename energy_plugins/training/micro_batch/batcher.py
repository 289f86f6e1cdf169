"""The micro-batch of one training: what is asked for, whether it may be had, and what it is at the moment."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from energy_plugins.errors import BatchError
from energy_plugins.measure.micro_batch_part import MicroBatchPart
from energy_plugins.training.all_ranks import AllRanks
from energy_plugins.training.choice_memory import Kind
from energy_plugins.training.guard import warn
from energy_plugins.training.limits.timing import Timing
from energy_plugins.training.limits.windows import Windows
from energy_plugins.training.measured import Measured
from energy_plugins.training.micro_batch.collectives import SPEAKS
from energy_plugins.training.micro_batch.course import MicroBatchCourse
from energy_plugins.training.micro_batch.doubt import Doubt, GradientsDifferError
from energy_plugins.training.micro_batch.foreseen import UNFORESEEN, foresee
from energy_plugins.training.micro_batch.gate import AGREEING, Gate
from energy_plugins.training.micro_batch.gradient_check import GradientCheck
from energy_plugins.training.micro_batch.later_checks import CompareGroup, LaterChecks, alone, is_due
from energy_plugins.training.micro_batch.memory import kind_of, recall, remember
from energy_plugins.training.micro_batch.own_sizes import OwnSizes
from energy_plugins.training.micro_batch.plan import MicroBatchPlan
from energy_plugins.training.micro_batch.probe import Probe
from energy_plugins.training.micro_batch.told import Known, told
from energy_plugins.training.watch import SumOverRanks
from energy_plugins.tune import MicroBatchChoice, effective_batch_outlook, rule_to_try
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
        self._most_sizes = most_sizes
        self._optimizer = optimizer
        self._shape = shape
        self._row_is_step = row_is_step
        self._training_step = training_step
        self._foreseen = UNFORESEEN
        self._timing = timing or Timing()
        self._why = why_not
        self._setting: MicroBatchPlan | None = None
        self._open: list[int] = []
        """Sizes whose gradients are still to be compared, the one to begin with last."""
        self._allowed: list[int] = []
        """Sizes that may be used, the user's own among them."""
        self._gate: Gate | None = None
        self._check: GradientCheck | None = None
        """The one that was furthest apart."""
        self._check_s = 0.0
        """What all of them took."""
        self._reasons: list[str] = []
        self._course: MicroBatchCourse | None = None
        self._script: Iterator[int] | None = None
        self._next = 0
        self._kind: Kind | None = None
        self._has_checked = False
        self._later = LaterChecks(is_on=not config.allow_batch_statistics)
        self._with_it = 0
        """Optimizer steps with the size that was chosen."""
        self._doubt: Doubt | None = None
        """What all ranks have heard of."""
        self.undecided = True
        """Whether windows are still to be considered."""
        self.has_said = False
        """Whether it has said itself why the user's setting is in force."""
        self.grown = ""
        """What was changed in the training itself before it began, as a report says it first."""
        self._tell()

    @property
    def plan(self) -> MicroBatchPlan | None:
        """What to do with the batches of the next optimizer step; None is what the user does."""
        setting, size = self._setting, self._rank.size
        return None if setting is None or size is None or size == setting.batch else replace(setting, size=size)

    @property
    def setting(self) -> MicroBatchPlan | None:
        """What the user does, as a plan; None while it is not known."""
        return self._setting

    @property
    def size(self) -> int | None:
        """Samples that go through the model at once; None while it is not known how many a batch has."""
        plan = self.plan or self._setting
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
        probe, setting = self._probe, self._setting
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
        if self._setting is None:
            self._agree(batch, accumulation)
        while self._open and self.undecided:
            plan = replace(self._setting, size=self._open[-1]) if self._setting is not None else None
            assert plan is not None  # noqa: S101 - sizes follow from a setting
            # Where gradients may differ more windows would only say again by how much.
            self._gate = self._gate or Gate(self._ranks, agreeing=AGREEING if self._later.is_on else 1)
            self._gate.look(lambda plan=plan: self._compared(compare, plan, window))  # type: ignore[misc]
            if self._gate.is_open is None:
                return
            self._judge(self._gate, plan.size)
            self._gate = None
        if self.undecided:
            self._begin()
        self._tell()

    @property
    def smaller(self) -> list[int]:
        """Sizes that a search may use below the user's, rising: to go down to if that does not fit."""
        setting = self._setting
        return [] if setting is None or self._course is None else [one for one in self._allowed if one < setting.batch]

    def allows(self, group: Sequence[Any], plan: MicroBatchPlan, compare: CompareGroup) -> bool:
        """Tell whether batches may run by ``plan``, see `LaterChecks`; if not they are to run as the user has it.

        Not collective: it is one rank's own affair, and the others hear later.
        """
        due = self.settled and is_due(self._with_it + 1)
        allowed = self._later.allow(group, plan, self._timed(compare), self._rank.steps + 1, due=due)
        if self._later.doubt is not None and self._rank.doubt is None:
            self._rank.doubt = self._later.doubt
            self._check = self._later.check or self._check
        return allowed

    def after_step(self) -> None:
        """Count an optimizer step, and do what is due after it. Collective now and then, where there are several."""
        self._rank.steps += 1
        if self._measured is not None:
            self._measured.stepped()
        if self._rank.doubt is not None and self._doubt is None and self._ranks.who.world_size == 1:
            self._leave(self._rank.doubt)  # of several ranks all do so together, when they have heard
        if self._script is not None and self._rank.steps >= self._next:
            was_settled = self.settled
            self._follow(self._script)
            if self.settled and not was_settled:
                self._remember()
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
        self._script = course.checking(slack)
        self._follow(self._script)

    def out_of_memory(self, size: int) -> None:
        """Hear that a size did not fit after all; this rank goes on with a smaller one, and the others will hear.

        That is the user's own, or if it is this that did not fit, the next below it.
        """
        self._rank.failed = max(self._rank.failed, size)
        below = [one for one in self.smaller if one < size]
        setting = self._setting
        self._rank.size = below[-1] if below and setting is not None and size <= setting.batch else None

    def lose(self, why: str) -> None:
        """Go on without measuring: a search ends, and the other ranks are told."""
        self._rank.lose(why)
        self._measured = None

    def close(self) -> None:
        """Have the report say what became of it."""
        self._later.forget()
        if self._later.doubt is not None and self._doubt is None:
            self._leave(self._later.doubt, is_heard=False)
        self._tell()

    # Deciding.

    def _agree(self, batch: int | None, accumulation: int) -> None:
        """Find out what all ranks have, and which sizes are worth comparing."""
        words = self._ranks.hear((math.nan if batch is None else float(batch), float(accumulation), bool(self._why)))
        if any(word[2] for word in words):
            self._decline(self._why or "another rank's training must be left as it is")
        elif any(math.isnan(word[0]) for word in words):
            self._decline("how many samples a batch has cannot be told, so it can be neither cut nor joined")
        elif len(set(words)) > 1 or batch is None:
            found = ", ".join(f"{word[0]:g} x {word[1]:g}" for word in words)
            self._decline(f"ranks have batches of their own ({found}), so no one size fits all")
        else:
            self._setting = MicroBatchPlan(batch, accumulation, batch)
            self._open = self._to_compare(self._setting)

    def _to_compare(self, setting: MicroBatchPlan) -> list[int]:
        """Return the sizes to compare: the one given, or the smallest and the largest; those between are like them."""
        batch, fixed = setting.batch, self._config.size
        if fixed is not None:
            try:
                replace(setting, size=fixed)
            except BatchError as error:
                self._decline(str(error))
                return []
            self._allowed = [fixed]
            return [] if fixed == batch else [fixed]
        self._foreseen = foresee(setting, self._training_step, self._measured, self._ranks)
        possible = list(self._foreseen.sizes)
        while len(possible) > self._most_sizes:
            possible.remove(max((one for one in possible if one != batch), key=lambda one: abs(math.log(one / batch))))
        self._allowed = possible
        if len(possible) == 1:
            self._decline(
                f"an optimizer step has no more than one batch of {batch}, which cannot be cut: only a larger "
                "effective batch would change anything, and that is another training"
            )
            return []
        return sorted({possible[0], possible[-1]} - {batch})

    def _compared(self, compare: CompareGroup, plan: MicroBatchPlan, window: Sequence[Any]) -> GradientCheck | None:
        group = self._later.hardest(window, plan)
        if group is None:
            return None
        check = self._timed(compare)(group, alone(plan, len(group)))
        self._later.made += 1
        if check is not None and check.speaks and self._later.is_on and self._gate is not None:
            self._gate.why_not = SPEAKS
            return None
        if check is None or not check.is_known:
            return check
        if check.agrees:
            self._later.learn(group, plan, check, self._rank.steps)
        if self._check is None or check.difference > self._check.difference:
            self._check = check
        allowed = self._config.allow_batch_statistics
        return replace(check, limit=math.inf) if allowed and check.factor is None else check

    def _timed(self, compare: CompareGroup) -> CompareGroup:
        def timed(group: Sequence[Any], plan: MicroBatchPlan) -> GradientCheck | None:
            began_ns = self._rank.now_ns()
            try:
                return compare(group, plan)
            finally:
                self._check_s += (self._rank.now_ns() - began_ns) * 1e-9

        return timed

    def _judge(self, gate: Gate, size: int) -> None:
        """Strike out what cannot be used."""
        assert self._setting is not None  # noqa: S101 - see `consider`
        self._open.pop()
        if gate.is_open:
            return
        batch = self._setting.batch
        if gate.fits:
            self._allowed = [one for one in self._allowed if (one - batch) * (size - batch) <= 0]
        else:
            self._allowed = [one for one in self._allowed if one < size]
            larger = [one for one in self._allowed if one > batch]
            self._open += larger[-1:]
        self._reasons.append(f"{size} samples at once: {gate.why_not}")

    def _begin(self) -> None:
        """Begin with what has been found to be possible."""
        setting, measured, fixed = self._setting, self._measured, self._config.size
        if setting is None or (self._allowed in ([], [setting.batch]) and fixed != setting.batch):
            self._decline("; ".join(self._reasons))
            return
        self.undecided = False
        if measured is not None and not self._row_is_step:
            measured.group_steps(setting.accumulation)
        windows = Windows(self._rank, self._ranks, self._timing)
        self._kind = kind_of(measured, self._ranks.who, self._shape, setting) if fixed is None else None
        self._course = MicroBatchCourse(
            windows,
            self._rank,
            share=setting.share,
            search_share=self._config.search_share,
            remembered=recall(self._kind),
            checked_s=self._check_s,
        )
        if fixed is None:
            self._script = self._course.searching(setting.batch, self._allowed, self._foreseen)
        else:
            self._script = self._course.keeping(setting.batch, fixed)
        self._next = self._rank.steps + next(self._script)

    def _remember(self) -> None:
        """Keep what a search chose for the next training of this kind, if it chose another size than the user's."""
        choice = None if self._course is None else self._course.searched.choice
        if choice is not None and self._setting is not None and choice.size != self._setting.batch:
            remember(self._kind, choice.size)

    def _follow(self, script: Iterator[int]) -> None:
        """Hear until when to go on as things are, or that a rank has a doubt. Collective now and then."""
        try:
            self._next = self._rank.steps + next(script)
        except GradientsDifferError as error:
            self._leave(error.doubt)

    def _leave(self, doubt: Doubt, *, is_heard: bool = True) -> None:
        """Go back to the user's setting for good, on all ranks that have heard of it: one of them says so."""
        self._doubt, self._script, self._rank.size = doubt, None, None
        if self._course is not None:
            self._course.searched.leave(doubt.why())
            self._course.probe = None  # nobody waits for its answer
        self._tell()
        if self._ranks.who.rank == 0 or not is_heard:
            self.has_said = True
            warn(f"the micro-batch is left alone from now on: {doubt.why()}")

    def _decline(self, why: str) -> None:
        self._why, self._open, self.undecided = why, [], False

    # What is said of it.

    def _outlook(self, choice: MicroBatchChoice) -> tuple[str, ...]:
        """Say what a larger effective batch would save, unless it has been made larger."""
        if choice.curve is None or self._setting is None or self.grown:
            return ()
        return effective_batch_outlook(
            choice.curve,
            share=self._setting.share,
            micro_batch=choice.size,
            rule=rule_to_try(self._optimizer),
            ranks=self._ranks.who.world_size,
            fits=self._foreseen.most,
        ).sentences

    def _tell(self) -> None:
        if self._measured is not None:
            self._measured.meter.micro_batched(self.part())

    def part(self) -> MicroBatchPart:
        """Return what a report says of it."""
        searched = None if self._course is None else self._course.searched
        choice = None if searched is None else searched.choice
        return told(
            Known(
                fixed=self._config.size,
                setting=self._setting,
                grown=self.grown,
                check=self._check,
                checks=self._later.made,
                check_s=self._check_s,
                doubt=self._doubt or self._later.doubt,
                why=self._why,
                reasons=(*self._reasons, *self._foreseen.sentences),
                outlook=() if choice is None else self._outlook(choice),
            ),
            searched,
        )
