"""How the batches of a loop of one's own go through its model: in parts, or several at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from energy_plugins.training.batch_tree import samples_in
from energy_plugins.training.gradient_check import GradientCheck, compare, limit_of
from energy_plugins.training.micro_passes import Pass, passes, unheard

if TYPE_CHECKING:
    from accelerate.accelerator import Accelerator

    from energy_plugins.training.micro_batch_plan import MicroBatchPlan

LossOf = Callable[..., torch.Tensor]


class Arguments(NamedTuple):
    """What the function of a loop is called with: together they are a batch."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class MicroBatches:
    """Runs the function of a loop that returns the loss of a batch, on parts of it or on several at once.

    All passes but the last go forward and backward here. The loss of the last is returned, with the values of the
    others added to it, so that the loop's own ``accelerator.backward`` completes what would have been one pass. For
    a batch that waits for those to run with it a loss of 0 is returned.

    Args:
        accelerator: of the loop.
        loss_of: the function.
        adds_up: whether its losses are sums over samples; if not, they are means.
    """

    def __init__(self, accelerator: Accelerator, loss_of: LossOf, *, adds_up: bool) -> None:
        self.plan: MicroBatchPlan | None = None
        """What is done with the batches of the windows that begin; None is what the loop does."""
        self._now: MicroBatchPlan | None = None
        """The same for the one that has begun."""
        self._accelerator = accelerator
        self._loss_of = loss_of
        self._adds_up = adds_up
        self._window: list[Arguments] = []
        """The batches of the optimizer step that runs."""
        self._held: list[Arguments] = []

    @property
    def batch(self) -> int | None:
        """Samples of the first batch of the window, None if that cannot be told."""
        return samples_in(self._window[0]) if self._window else None

    @property
    def accumulation(self) -> int:
        """Batches of an optimizer step."""
        return int(self._accelerator.gradient_accumulation_steps)

    def loss(self, batch: Arguments, at_window: Callable[[], None]) -> torch.Tensor:
        """Return the loss of a batch for the loop to differentiate.

        Args:
            batch: what the function is called with.
            at_window: called with the last batch of an optimizer step, before it runs: then `compare` works.
        """
        is_last = bool(self._accelerator.sync_gradients)
        if not self._window:
            self._now = self.plan
        self._window.append(batch)
        if is_last:
            at_window()
            self._window = []
        plan = self._now
        if plan is None or plan.is_users:
            return self._loss_of(*batch.args, **batch.kwargs)
        self._held.append(batch)
        if len(self._held) < plan.together and not is_last:
            return torch.zeros((), device=self._accelerator.device, requires_grad=True)
        held, self._held = self._held, []
        return self._run(passes(held, plan, adds_up=self._adds_up))

    def compare(self, plan: MicroBatchPlan) -> GradientCheck | None:
        """Return how the gradients of the window that ends would differ, None if it is not a whole one."""
        window = list(self._window)
        if [samples_in(batch) for batch in window] != [plan.batch] * plan.accumulation:
            return None
        usual = [Pass(batch) for batch in window]
        other = [
            one
            for first in range(0, len(window), plan.together)
            for one in passes(window[first : first + plan.together], plan, adds_up=self._adds_up)
        ]
        models = self._accelerator._models  # noqa: SLF001 - accelerate tells by no other way
        model = torch.nn.ModuleList(models)
        precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(str(self._accelerator.mixed_precision))
        with ExitStack() as alone:
            for one in models:
                alone.enter_context(unheard(one))
            return compare(
                model,
                lambda: self._accelerator.backward(self._run(usual)),
                lambda: self._accelerator.backward(self._run(other)),
                limit=limit_of(model, precision),
            )

    def _run(self, each: Sequence[Pass]) -> torch.Tensor:
        """Run passes of one batch, or of several as one, all but the last to their end."""
        loss: torch.Tensor | None = None
        for one in each[:-1]:
            with ExitStack() as unsynced:
                for model in self._accelerator._models:  # noqa: SLF001 - as above
                    unsynced.enter_context(self._accelerator.no_sync(model))
                found = self._weighted(one)
                self._accelerator.backward(found)
            loss = found.detach() if loss is None else loss + found.detach()
        last = self._weighted(each[-1])
        return last if loss is None else last + loss

    def _weighted(self, one: Pass) -> torch.Tensor:
        loss = self._loss_of(*one.batch.args, **one.batch.kwargs)
        return loss if one.weight == 1.0 else loss * one.weight
