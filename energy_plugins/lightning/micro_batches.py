"""How the batches of a fit go through its model: in parts, or several at once, with the gradients they had."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from energy_plugins.errors import BatchError
from energy_plugins.lightning.installed import ParallelStrategy
from energy_plugins.lightning.logged import logging_to, metrics_kept
from energy_plugins.lightning.passes import Arrived, Passes
from energy_plugins.training.micro_batch.both_ways import both_ways
from energy_plugins.training.micro_batch.gradient_check import GradientCheck
from energy_plugins.training.micro_batch.later_checks import CompareGroup
from energy_plugins.training.micro_batch.passes import Pass, unheard
from energy_plugins.training.micro_batch.plan import MicroBatchPlan
from energy_plugins.training.micro_batch.probe import one_pass
from energy_plugins.training.replaced import Replaced
from energy_plugins.training.working_set.followed import TrainingStep

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult

_SCALE = 1024.0
"""Of losses whose gradients are compared: those of float16 would vanish without one, as the trainer knows."""


class MicroBatches:
    """Puts itself over what makes the closure of a batch, until `close`; without a plan that does what it did.

    Lightning hands batches on one by one. One that is to be cut runs in parts within its own closure. Those that are to
    run together are held until the last of them comes, or the window ends; the others' closures do nothing.

    Args:
        trainer: which fits.
        module: what it fits.
        at_window: called with the first batch of a window, before anything runs, when `plan` may be changed.
        at_pass: called before each pass but the first of a batch.
        allows: whether batches may run by a plan, see `MicroBatcher.allows`.
        out_of_memory: told of a size that did not fit after all.
    """

    def __init__(  # noqa: PLR0913 - what happens, and who hears of it
        self,
        trainer: Trainer,
        module: LightningModule,
        *,
        at_window: Callable[[], None],
        at_pass: Callable[[], None],
        allows: Callable[[Sequence[Any], MicroBatchPlan, CompareGroup], bool],
        out_of_memory: Callable[[int], None],
    ) -> None:
        self.plan: MicroBatchPlan | None = None
        """What is done with the windows that begin; None is what the user does."""
        self.smaller: list[int] = []
        """Sizes to go down to if the user's own does not fit, the largest last; empty once it has run."""
        self.keeps = False
        """Whether the batches of a window are kept until the next begins, for `compare`."""
        self.window: list[Arrived] = []
        """The batches of the optimizer step that runs, or that has just been made."""
        self._at_window = at_window
        self.at_pass = at_pass
        self._allows = allows
        self.out_of_memory = out_of_memory
        self.trainer = trainer
        self.module = module
        self.loop = trainer.fit_loop.epoch_loop.automatic_optimization
        self._now: MicroBatchPlan | None = None
        self._begun = 0
        """Of the window, how many batches have run, or are no longer held."""
        self._ended = True
        self._replaced = Replaced()
        self._replaced.cover(self.loop, "_make_closure", self._closure_for)

    def close(self) -> None:
        """Put everything back."""
        self._replaced.close()
        self.forget()

    def forget(self) -> None:
        """Let go of the batches of a window that has ended."""
        if self._ended:
            self.window = []

    @property
    def ended(self) -> bool:
        """Whether the last batch ended a window."""
        return self._ended

    def _closure_for(
        self,
        original: Callable[..., Closure],
        /,
        kwargs: OrderedDict[str, Any],
        optimizer: torch.optim.Optimizer,
        batch_idx: int,
    ) -> Closure | Passes:
        loop, trainer = self.loop, self.trainer
        arrived = Arrived(kwargs, optimizer, loop._make_zero_grad_fn(batch_idx, optimizer))  # noqa: SLF001
        if self._ended or batch_idx % trainer.accumulate_grad_batches == 0:
            self.window, self._begun = [arrived], 0
            self._at_window()
            self._now = self.plan
        elif self.keeps or self._now is not None:
            self.window.append(arrived)
        self._ended = not trainer.fit_loop._should_accumulate()  # noqa: SLF001 - what the loop itself asks
        plan = self._now
        if plan is None or (plan.is_users and not self.smaller) or loop._skip_backward:  # noqa: SLF001
            self._begun = len(self.window)
            return original(kwargs, optimizer, batch_idx)
        held = self.window[self._begun :]
        if len(held) < plan.together and not self._ended:
            return Passes(self, [], plan)
        self._begun = len(self.window)
        if not plan.is_users and not self._allows([one.kwargs["batch"] for one in held], plan, self.compare):
            plan = replace(plan, size=plan.batch)
        return Passes(self, held, plan)

    def fall_back(self, failed: MicroBatchPlan) -> MicroBatchPlan:
        """Go on with this window in smaller passes: as the user has it, or if that is too large, with the next size."""
        size = failed.batch if failed.together > 1 else self.smaller.pop()
        self._now = replace(failed, size=size)
        return self._now

    def block(self, *, block: bool) -> AbstractContextManager[object]:
        """Return a context in which no gradients are reduced, if so."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if block and isinstance(strategy, ParallelStrategy) else nullcontext()

    def run(self, one: Pass) -> ClosureResult:
        """Run ``training_step`` on samples of this window, with all else that came with the last of their batches."""
        came = (arrived for arrived in reversed(self.window) if arrived.kwargs["batch"] is one.last)
        kwargs = OrderedDict(next(came, self.window[-1]).kwargs)
        kwargs["batch"] = one.batch
        return self.loop._training_step(kwargs)  # noqa: SLF001

    # The check.

    def compare(self, batches: Sequence[Any], plan: MicroBatchPlan) -> GradientCheck | None:
        """Return how the gradients of batches would differ with ``plan``, None if they are no whole ones."""
        model = self.trainer.strategy.model
        silent = logging_to(self.module, lambda *_, **__: None)
        with silent, unheard(model or self.module), metrics_kept(self.module):
            return both_ways(
                [self.module],
                batches,
                plan,
                self._differentiate,
                adds_up=False,
                precision=precision_of(self.trainer),
            )

    def try_pass(self, plan: MicroBatchPlan) -> bool:
        """Run one micro-batch of ``plan`` on trial; False if the window has none."""
        silent = logging_to(self.module, lambda *_, **__: None)
        with silent, unheard(self.trainer.strategy.model or self.module), metrics_kept(self.module):
            batches = [one.kwargs["batch"] for one in self.window]
            return one_pass([self.module], batches, plan, self._differentiate, adds_up=False)

    def training_step(self) -> TrainingStep:
        """Return what is known of the steps of this fit: of its last batch, of which ``training_step`` makes a loss."""
        last = self.window[-1]
        return TrainingStep(
            model=self.module, batch=last.kwargs["batch"], optimizers=self.trainer.optimizers, loss_of=self._loss_of
        )

    def _loss_of(self, module: torch.nn.Module, batch: object) -> torch.Tensor:
        silent = logging_to(self.module, lambda *_, **__: None)
        with silent, unheard(self.trainer.strategy.model or module), metrics_kept(self.module):
            loss = self.run(Pass(batch)).closure_loss
        if loss is None:
            raise BatchError("training_step returns no loss")
        return loss

    def _differentiate(self, each: Sequence[Pass]) -> None:
        for one in each:
            loss = self.run(one).closure_loss
            if loss is not None:
                loss = loss * one.weight * _SCALE
                # Those of the module may change the gradients, and are called for each pass.
                self.module.on_before_backward(loss)
                self.module.backward(loss)
                self.module.on_after_backward()


def lacks(trainer: Trainer) -> str:
    """Return what this needs of Lightning's own, and another version no longer has; empty if all is there."""
    loop = trainer.fit_loop.epoch_loop.automatic_optimization
    needed = [(loop, name) for name in _OF_THE_LOOP] + [(trainer.fit_loop, "_should_accumulate"), (trainer, "_results")]
    return ", ".join(name for owner, name in needed if not hasattr(owner, name))


_OF_THE_LOOP = ("_make_closure", "_make_zero_grad_fn", "_make_backward_fn", "_training_step", "_skip_backward")


def precision_of(trainer: Trainer) -> torch.dtype | None:
    """Return in what the passes of a trainer compute, None for what its parameters are of."""
    name = str(trainer.precision)
    return torch.bfloat16 if "bf16" in name else torch.float16 if name.startswith("16") else None
