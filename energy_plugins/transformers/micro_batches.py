"""How the batches of a Trainer go through its model: in parts, or several at once, with the gradients they had."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from energy_plugins.training.micro_batch.both_ways import both_ways
from energy_plugins.training.micro_batch.out_of_memory import free_caches, is_out_of_memory
from energy_plugins.training.micro_batch.passes import Pass, passes
from energy_plugins.training.micro_batch.probe import one_pass
from energy_plugins.training.replaced import Replaced
from energy_plugins.training.working_set.followed import TrainingStep
from energy_plugins.transformers.trainers import autocast_of

if TYPE_CHECKING:
    from transformers.trainer import Trainer

    from energy_plugins.training.micro_batch.gradient_check import GradientCheck
    from energy_plugins.training.micro_batch.later_checks import CompareGroup
    from energy_plugins.training.micro_batch.plan import MicroBatchPlan

Original = Callable[..., Any]


class _Call(NamedTuple):
    """A call of `Trainer.training_step`, for whatever batch."""

    original: Original
    model: torch.nn.Module
    args: tuple[object, ...]
    kwargs: dict[str, object]

    def __call__(self, batch: object) -> Any:  # noqa: ANN401 - a loss, or what a trainer of one's own makes of it
        return self.original(self.model, batch, *self.args, **self.kwargs)

    @property
    def items(self) -> object:
        """What the losses of the window are divided by, None if each is a mean."""
        return self.kwargs.get("num_items_in_batch", self.args[0] if self.args else None)


class MicroBatches:
    """Puts itself over a trainer's functions until `close`; without a plan each still does what it did.

    The trainer fetches the batches of an optimizer step together and hands them to `Trainer.training_step` one by one.
    A batch that is to be cut runs in parts there. Batches that are to run together are held until the last of them
    comes; for the others a loss of 0 is returned, so that the trainer's sum of losses is what it was.

    Args:
        trainer: whose training begins.
        at_window: called before the first pass of an optimizer step, when `plan` may be changed and `compare` works.
        at_pass: called before each pass of a batch but the first.
        allows: whether batches may run by a plan, see `MicroBatcher.allows`.
        out_of_memory: told of a micro-batch that did not fit, when its window has been begun anew without it.
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        at_window: Callable[[], None],
        at_pass: Callable[[], None],
        allows: Callable[[Sequence[Any], MicroBatchPlan, CompareGroup], bool],
        out_of_memory: Callable[[int], None],
    ) -> None:
        self.plan: MicroBatchPlan | None = None
        """What is done with the batches of the windows that begin; None is what the user does."""
        self.smaller: list[int] = []
        """Sizes to go down to if the user's own does not fit, the largest last; empty once it has run."""
        self._now: MicroBatchPlan | None = None
        """The same for the one that has begun."""
        self._trainer = trainer
        self._at_window = at_window
        self._at_pass = at_pass
        self._allows = allows
        self._out_of_memory = out_of_memory
        self.window: Sequence[Any] = ()
        """The batches of the optimizer step that runs."""
        self._begun = 0
        """How many of them the trainer has handed on."""
        self._held: list[Any] = []
        self._weight = 1.0
        self._first: _Call | None = None
        """That of the window which begins, while `at_window` is called."""
        self._replaced = Replaced()
        for name, function in (
            ("get_batch_samples", self._fetching),
            ("training_step", self._in_training_step),
            ("compute_loss", self._in_loss),
        ):
            self._replaced.cover(trainer, name, function)

    def close(self) -> None:
        """Put everything back."""
        self._replaced.close()
        self.window, self._held = (), []

    def compare(self, batches: Sequence[Any], plan: MicroBatchPlan) -> GradientCheck | None:
        """Return how the gradients of some batches of this window would differ, None if they are no whole ones."""
        return None if self._first is None else self._compared(self._first, batches, plan)

    def _compared(self, call: _Call, batches: Sequence[Any], plan: MicroBatchPlan) -> GradientCheck | None:
        return both_ways(
            [call.model],
            batches,
            plan,
            partial(self._run, call),
            adds_up=self._adds_up(call),
            precision=autocast_of(self._trainer),
        )

    def try_pass(self, plan: MicroBatchPlan) -> bool:
        """Run one micro-batch of ``plan`` on trial; False if the window that begins has none."""
        call = self._first
        if call is None:
            return False
        run = partial(self._run, call)
        return one_pass([call.model], self.window, plan, run, adds_up=self._adds_up(call))

    def training_step(self) -> TrainingStep:
        """Return what is known of the steps of this training: of its first batch, and of the model's own loss.

        What the trainer makes of it is its own affair: it may keep what it sees.
        """
        trainer = self._trainer
        return TrainingStep(
            model=trainer.model_wrapped,
            batch=self.window[0],
            optimizers=[] if trainer.optimizer is None else [trainer.optimizer],
            autocast=autocast_of(trainer),
        )

    # Over the trainer's functions.

    def _fetching(self, original: Original, /, *args: object, **kwargs: object) -> object:
        fetched: Any = original(*args, **kwargs)
        self.window, self._begun, self._held = fetched[0], 0, []
        return fetched

    def _in_training_step(
        self, original: Original, model: torch.nn.Module, inputs: object, *args: object, **kwargs: object
    ) -> object:
        call = _Call(original, model, args, kwargs)
        if self._begun == 0:
            self._first = call
            try:
                self._at_window()
            finally:
                self._first = None
            self._now = self.plan
        self._begun += 1
        plan = self._now
        if plan is None or (plan.is_users and not self.smaller):
            return call(inputs)
        self._held.append(inputs)
        if len(self._held) < plan.together and self._begun < len(self.window):
            return torch.zeros((), device=self._trainer.args.device)
        held, self._held = self._held, []
        if not plan.is_users and not self._allows(held, plan, partial(self._compared, call)):
            return self._run(call, [Pass(batch) for batch in held])
        return self._run_by(call, plan, held)

    def _run_by(self, call: _Call, plan: MicroBatchPlan, batches: Sequence[object]) -> object:
        """Run the passes that a plan makes of batches, or of the whole window smaller ones if these are too large."""
        try:
            loss = self._run(call, self._planned(call, plan, batches))
        except (RuntimeError, MemoryError) as error:
            self.smaller = [one for one in self.smaller if one < plan.size]
            recovers = (plan.together > 1 or self.smaller) and not self._is_reduced()
            if not recovers or not is_out_of_memory(error):
                raise
        else:
            if plan.is_users:
                self.smaller = []
            return loss
        return self._begin_anew(call, plan, batches)

    def _begin_anew(self, call: _Call, failed: MicroBatchPlan, held: Sequence[object]) -> object:
        """Run the window so far in smaller passes, when one was too large, and return the loss of ``held``."""
        # What is left of the failed pass must be gone before anything else runs: half its gradients are there.
        call.model.zero_grad()
        free_caches()
        self._out_of_memory(failed.size)
        size = failed.batch if failed.together > 1 else self.smaller.pop()
        self._now = plan = replace(failed, size=size)
        if done := self.window[: self._begun - len(held)]:
            with self._trainer.accelerator.no_sync(call.model):
                self._run(call, self._planned(call, plan, done))
        return self._run_by(call, plan, held)

    def _planned(self, call: _Call, plan: MicroBatchPlan, batches: Sequence[object]) -> list[Pass]:
        groups = [batches[first : first + plan.together] for first in range(0, len(batches), plan.together)]
        return [one for group in groups for one in passes(group, plan, adds_up=self._adds_up(call))]

    def _is_reduced(self) -> bool:
        """Tell whether other ranks are in the middle of this pass, too: then nobody can begin anew."""
        return self._begun == len(self.window) and self._trainer.accelerator.num_processes > 1

    def _in_loss(self, original: Original, /, *args: object, **kwargs: object) -> object:
        found: Any = original(*args, **kwargs)
        if self._weight == 1.0:
            return found
        return (found[0] * self._weight, *found[1:]) if isinstance(found, tuple) else found * self._weight

    # Passes.

    def _run(self, call: _Call, each: Sequence[Pass]) -> Any:  # noqa: ANN401 - as `_Call`
        """Run passes of one batch, or of several as one, and return the sum of their losses."""
        loss: Any = None
        for index, one in enumerate(each):
            if index:
                self._at_pass()
            is_last = index == len(each) - 1
            self._weight = one.weight
            try:
                # The trainer says whether gradients are reduced after this batch: then after the last of its passes.
                with nullcontext() if is_last else self._trainer.accelerator.no_sync(call.model):
                    found = call(one.batch)
            finally:
                self._weight = 1.0
            loss = found if loss is None else loss + found
        return loss

    def _adds_up(self, call: _Call) -> bool:
        """Tell whether the losses of a window are sums with one divisor, as the trainer itself tells it."""
        takes_items = self._trainer.model_accepts_loss_kwargs or self._trainer.compute_loss_func is not None
        return call.items is not None and takes_items
