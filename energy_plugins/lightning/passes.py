"""What runs in place of a batch's own closure: the passes that are due with it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch

from energy_plugins.errors import BatchError
from energy_plugins.lightning.logged import Logged
from energy_plugins.training.micro_batch.batch_tree import joined, samples_in
from energy_plugins.training.micro_batch.out_of_memory import free_caches, is_out_of_memory
from energy_plugins.training.micro_batch.passes import Pass, passes
from energy_plugins.training.micro_batch.plan import MicroBatchPlan

if TYPE_CHECKING:
    from lightning.pytorch.loops.optimization.automatic import ClosureResult

    from energy_plugins.lightning.micro_batches import MicroBatches


class Arrived:
    """A batch as the loop handed it on."""

    def __init__(
        self,
        kwargs: OrderedDict[str, Any],
        optimizer: torch.optim.Optimizer,
        zero_grad: Callable[[], None] | None,
    ) -> None:
        self.kwargs = kwargs
        self.optimizer = optimizer
        self.zero_grad = zero_grad
        """Of the first batch of a window."""


class Passes:
    """The closure of a batch: the passes of the batches that are due with it, none if they are to wait.

    It is called and asked for its result as Lightning's own.
    """

    def __init__(self, batches: MicroBatches, held: Sequence[Arrived], plan: MicroBatchPlan) -> None:
        self._batches = batches
        self._held = held
        self._plan = plan
        self._zeroed = False
        self._result: ClosureResult | None = None

    def consume_result(self) -> ClosureResult:
        """Return the result of the last call; that of batches that wait holds nothing."""
        result, self._result = self._result, None
        if result is not None:
            return result
        nothing: ClosureResult = self._batches.loop.output_result_cls(None)
        if not self._held:  # callbacks may read the loss of each batch: this one's comes with those it runs with
            nothing.loss = torch.zeros((), device=self._batches.module.device)
        return nothing

    @torch.enable_grad()
    def __call__(self) -> torch.Tensor | None:
        """Run forward and backward, and return the loss."""
        if not self._held:
            return None
        self._zeroed = False
        if not self._run(self._plan, self._held, guarded=True):
            self._begin_anew()
        elif self._plan.is_users:
            self._batches.smaller = []
        return None if self._result is None else self._result.loss

    def _begin_anew(self) -> None:
        """Run the window so far once more in smaller passes, when one was too large."""
        batches = self._batches
        # What is left of the failed pass must be gone before anything else runs: half its gradients are there.
        for parameter in batches.module.parameters():
            parameter.grad = None
        free_caches()
        batches.out_of_memory(self._plan.size)
        plan = batches.fall_back(self._plan)
        done = batches.window[: -len(self._held)]
        if done:
            with batches.block(block=True):
                self._run(plan, done, is_logged=False)
        if not self._run(plan, self._held, guarded=plan.size < plan.batch):
            self._plan = plan
            self._begin_anew()

    def _run(
        self, plan: MicroBatchPlan, arrived: Sequence[Arrived], *, is_logged: bool = True, guarded: bool = False
    ) -> bool:
        """Run the passes that a plan makes of batches, and return whether there was enough memory for them."""
        batches, results = self._batches, list[tuple[Pass, Any]]()
        logged, each = Logged(batches.module), list[Pass]()
        for first in range(0, len(arrived), plan.together):
            some = [one.kwargs["batch"] for one in arrived[first : first + plan.together]]
            each += passes(some, plan, adds_up=False)
        zero_grad = next((one.zero_grad for one in arrived if one.zero_grad is not None), None)
        reduced = batches.ended and batches.trainer.world_size > 1
        for index, one in enumerate(each):
            if index:
                batches.at_pass()
            is_last = index == len(each) - 1
            try:
                with batches.block(block=not is_last), logged.of(samples_in(one.batch) or 1):
                    result = batches.run(one)
                    if index == 0 and zero_grad is not None and is_logged and not self._zeroed:
                        self._zeroed = True
                        zero_grad()
                    self._backward(result, one.weight)
            except (RuntimeError, MemoryError) as error:
                # Where ranks reduce in the last pass, the others are in the middle of it: nobody could begin anew.
                batches.smaller = [one for one in batches.smaller if one < plan.size]
                recovers = guarded and (plan.together > 1 or batches.smaller) and not (is_last and reduced)
                if not (recovers and is_out_of_memory(error)):
                    raise
                return False
            results.append((one, result))
        if is_logged:
            self._result = _together(results)
            logged.hand_on()
        return True

    def _backward(self, result: ClosureResult, weight: float) -> None:
        backward = self._batches.loop._make_backward_fn(self._held[-1].optimizer)  # noqa: SLF001
        if backward is not None and result.closure_loss is not None:
            backward(result.closure_loss * weight)


def _together(results: Sequence[tuple[Pass, ClosureResult]]) -> ClosureResult:
    """Return one result of several passes: outputs joined where they are of samples, else the last.

    Its loss is the mean of one batch that was cut, the sum of those of several that ran together.
    """
    last = results[-1][1]
    losses = [(one.weight, result.loss) for one, result in results if result.loss is not None]
    if losses:
        whole = sum(weight for weight, _ in losses)
        last.loss = torch.stack([loss * (weight * max(whole, 1.0) / whole) for weight, loss in losses]).sum(0)
    last.closure_loss = None
    if len(results) > 1:
        last.extra = {key: _output(key, results) for key in last.extra}
    return last


def _output(key: str, results: Sequence[tuple[Pass, ClosureResult]]) -> object:
    values = [result.extra.get(key) for _, result in results]
    if all(samples_in(value) == samples_in(one.batch) for value, (one, _) in zip(values, results, strict=True)):
        with suppress(BatchError):
            return joined(values)
    return values[-1]
