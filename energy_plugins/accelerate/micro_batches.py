"""How the batches of a loop of one's own go through its model: in parts, or several at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch

from energy_plugins.accelerate.wrappers import Called, Wrappers
from energy_plugins.errors import BatchError
from energy_plugins.training.micro_batch.batch_tree import samples_in
from energy_plugins.training.micro_batch.both_ways import both_ways
from energy_plugins.training.micro_batch.out_of_memory import free_caches, is_out_of_memory
from energy_plugins.training.micro_batch.passes import Pass, passes
from energy_plugins.training.micro_batch.probe import one_pass
from energy_plugins.training.working_set.followed import TrainingStep
from energy_plugins.training.working_set.model_call import loss_in

if TYPE_CHECKING:
    from accelerate.accelerator import Accelerator

    from energy_plugins.training.micro_batch.gradient_check import GradientCheck
    from energy_plugins.training.micro_batch.later_checks import CompareGroup
    from energy_plugins.training.micro_batch.plan import MicroBatchPlan

LossOf = Callable[..., torch.Tensor]


class Arguments(NamedTuple):
    """What the function of a loop is called with: together they are a batch."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class MicroBatches:
    """Runs the function of a loop that returns the loss of a batch, on parts of it or on several at once.

    These passes go forward and backward here. The loop gets a loss of their value, and what it differentiates is
    nothing more: its ``accelerator.backward`` leaves the gradients alone. For a batch that waits for those to run with
    it the loss is 0.

    Args:
        accelerator: of the loop.
        loss_of: the function.
        adds_up: whether its losses are sums over samples; if not, they are means.
        allows: whether batches may run by a plan, see `MicroBatcher.allows`.
        out_of_memory: told of a micro-batch that did not fit, when its window has been begun anew without it.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        loss_of: LossOf,
        *,
        adds_up: bool,
        allows: Callable[[Sequence[Any], MicroBatchPlan, CompareGroup], bool],
        out_of_memory: Callable[[int], None],
    ) -> None:
        self.plan: MicroBatchPlan | None = None
        """What is done with the batches of the window that begins or has begun; None is what the loop does."""
        self.window: list[Arguments] = []
        """The batches of the optimizer step that runs."""
        self._accelerator = accelerator
        self._loss_of = loss_of
        self._adds_up = adds_up
        self._allows = allows
        self._out_of_memory = out_of_memory
        self._held: list[Arguments] = []
        self.wrappers = Wrappers(accelerator)
        """Seen until somebody closes them."""
        self.trouble = ""
        """What is wrong with the function, empty if nothing is known."""
        self._factors: list[float] = []

    @property
    def batch(self) -> int | None:
        """Samples of the first batch of the window, None if that cannot be told."""
        return samples_in(self.window[0]) if self.window else None

    @property
    def is_whole(self) -> bool:
        """Whether the batches of an optimizer step are all there."""
        return bool(self._accelerator.sync_gradients)

    @property
    def factor(self) -> float | None:
        """By what the loop multiplies losses before its backward passes; None if it has made none, NaN if it varies."""
        seen = set(self._factors)
        return seen.pop() if len(seen) == 1 else math.nan if seen else None

    def loss(self, batch: Arguments, *, is_watched: bool) -> torch.Tensor:
        """Return the loss of the last batch of the window so far; `factor` is of those that are watched."""
        plan = self.plan
        if plan is None or plan.is_users:
            loss: Any = self._loss_of(*batch.args, **batch.kwargs)  # as the user's function has it
            if is_watched and not (isinstance(loss, torch.Tensor) and loss.ndim == 0):
                self.trouble = f"the function returns a {type(loss).__name__} where one number is needed, the loss"
            elif is_watched and loss.requires_grad:
                loss.register_hook(self._note_factor)
            return cast("torch.Tensor", loss)
        self._held.append(batch)
        if len(self._held) < plan.together and not self.is_whole:
            return self._done(torch.zeros((), device=self._accelerator.device))
        held, self._held = self._held, []
        if not self._allows(held, plan, self.compare):
            return self._done(self._run([Pass(one) for one in held]))
        try:
            return self._done(self._run(passes(held, plan, adds_up=self._adds_up)))
        except (RuntimeError, MemoryError) as error:
            is_reduced = self.is_whole and self._accelerator.num_processes > 1  # with the others, who go on
            if plan.together == 1 or is_reduced or not is_out_of_memory(error):
                raise
        return self._done(self._begin_anew(plan.size, held))

    def compare(self, batches: Sequence[Any], plan: MicroBatchPlan) -> GradientCheck | None:
        """Return how the gradients of batches would differ with ``plan``, None if they are no whole ones."""
        return both_ways(
            self.wrappers.models,
            batches,
            plan,
            self._run,
            adds_up=self._adds_up,
            precision={"bf16": torch.bfloat16, "fp16": torch.float16}.get(str(self._accelerator.mixed_precision)),
        )

    def try_pass(self, plan: MicroBatchPlan) -> bool:
        """Run one micro-batch of ``plan`` on trial; False if the window has none."""
        return one_pass(self.wrappers.models, self.window, plan, self._run, adds_up=self._adds_up)

    def training_step(self) -> TrainingStep:
        """Return what is known of the steps of this loop: of its model, which must be the only one, as it was called.

        What the function makes of that is its own affair: it may keep what it sees.

        Raises:
            BatchError: if that is not known.
        """
        models, called = self.wrappers.models, self.wrappers.inputs
        if len(models) != 1 or called is None:
            raise BatchError(f"how the loop calls its {len(models)} models is not known")
        return TrainingStep(
            model=models[0],
            batch=called,
            optimizers=self._accelerator._optimizers,  # noqa: SLF001 - accelerate tells by no other way
            loss_of=lambda model, batch: loss_in(model(*cast("Called", batch).args, **cast("Called", batch).kwargs)),
        )

    def _note_factor(self, gradient: torch.Tensor) -> None:
        scaler = self._accelerator.scaler
        expected = (1.0 if scaler is None else scaler.get_scale()) / self._accelerator.gradient_accumulation_steps
        self._factors.append(round(float(gradient) / expected, 6))

    def _done(self, loss: torch.Tensor) -> torch.Tensor:
        """Return a loss that can be differentiated once more, to no effect."""
        return loss + torch.zeros_like(loss, requires_grad=True)

    def _run(self, each: Sequence[Pass]) -> torch.Tensor:
        """Run passes of one batch, or of several as one, and return the sum of their losses."""
        total: torch.Tensor | None = None
        for index, one in enumerate(each):
            with ExitStack() as unsynced:
                if index < len(each) - 1:
                    self._unsync(unsynced)
                loss = self._loss_of(*one.batch.args, **one.batch.kwargs)
                loss = loss if one.weight == 1.0 else loss * one.weight
                self._accelerator.backward(loss)
            total = loss.detach() if total is None else total + loss.detach()
        if total is None:
            raise ValueError("there is no pass to run")
        return total

    def _unsync(self, stack: ExitStack) -> None:
        for model in self.wrappers.models:
            stack.enter_context(self._accelerator.no_sync(model))

    def _begin_anew(self, size: int, held: Sequence[Arguments]) -> torch.Tensor:
        """Run the window so far as the loop has it, when a pass was too large, and return the loss of ``held``."""
        # What is left of the failed pass must be gone before anything else runs: half its gradients are there.
        for model in self.wrappers.models:
            model.zero_grad()
        free_caches()
        self.plan = None
        self._out_of_memory(size)
        if done := [Pass(batch) for batch in self.window[: -len(held)]]:
            with ExitStack() as unsynced:
                self._unsync(unsynced)
                self._run(done)
        return self._run([Pass(batch) for batch in held])
