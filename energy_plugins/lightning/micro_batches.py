"""How the batches of a fit go through its model: in parts, or several at once, with the gradients they had."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from energy_plugins.errors import BatchError
from energy_plugins.lightning.installed import ParallelStrategy
from energy_plugins.lightning.logged import Logged, logging_to, metrics_kept
from energy_plugins.training.batch_tree import joined, samples_in
from energy_plugins.training.both_ways import both_ways
from energy_plugins.training.gradient_check import GradientCheck
from energy_plugins.training.memory import free_caches, is_out_of_memory
from energy_plugins.training.micro_batch_plan import MicroBatchPlan
from energy_plugins.training.micro_passes import Pass, passes, unheard
from energy_plugins.training.replaced import Replaced

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
        out_of_memory: told of a size that did not fit after all.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        *,
        at_window: Callable[[], None],
        at_pass: Callable[[], None],
        out_of_memory: Callable[[int], None],
    ) -> None:
        self.plan: MicroBatchPlan | None = None
        """What is done with the windows that begin; None is what the user does."""
        self.smaller: list[int] = []
        """Sizes to go down to if the user's own does not fit, the largest last; empty once it has run."""
        self.keeps = False
        """Whether the batches of a window are kept until the next begins, for `compare`."""
        self.window: list[_Arrived] = []
        """The batches of the optimizer step that runs, or that has just been made."""
        self._at_window = at_window
        self.at_pass = at_pass
        self.out_of_memory = out_of_memory
        self.trainer = trainer
        self.module = module
        self.loop = trainer.fit_loop.epoch_loop.automatic_optimization
        self._now: MicroBatchPlan | None = None
        self._begun = 0
        """Of the window, how many batches have run, or are no longer held."""
        self._ended = True
        self._replaced = Replaced()
        self._replaced.replace(self.loop, "_make_closure", self._closure_for)

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
        self, kwargs: OrderedDict[str, Any], optimizer: torch.optim.Optimizer, batch_idx: int
    ) -> Closure | Passes:
        loop, trainer = self.loop, self.trainer
        arrived = _Arrived(kwargs, optimizer, loop._make_zero_grad_fn(batch_idx, optimizer))  # noqa: SLF001
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
            return type(loop)._make_closure(loop, kwargs, optimizer, batch_idx)  # noqa: SLF001
        held = self.window[self._begun :]
        if len(held) < plan.together and not self._ended:
            return Passes(self, [], plan)
        self._begun = len(self.window)
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

    def run(self, arrived: _Arrived, one: Pass) -> ClosureResult:
        """Run ``training_step`` on other samples than those that arrived."""
        kwargs = OrderedDict(arrived.kwargs)
        kwargs["batch"] = one.batch
        return self.loop._training_step(kwargs)  # noqa: SLF001

    # The check.

    def compare(self, plan: MicroBatchPlan) -> GradientCheck | None:
        """Return how the gradients of the window would differ with ``plan``, None if it is no whole one.

        To cut batches, those that have come are enough.
        """
        batches = [one.kwargs["batch"] for one in self.window]
        if plan.together == 1 and batches:
            plan = replace(plan, accumulation=len(batches))
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

    def _differentiate(self, each: Sequence[Pass]) -> None:
        for one in each:
            loss = self.run(self.window[-1], one).closure_loss
            if loss is not None:
                self.module.backward(loss * one.weight * _SCALE)


class _Arrived:
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

    def __init__(self, batches: MicroBatches, held: Sequence[_Arrived], plan: MicroBatchPlan) -> None:
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
        self, plan: MicroBatchPlan, arrived: Sequence[_Arrived], *, is_logged: bool = True, guarded: bool = False
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
                    result = batches.run(arrived[-1], one)
                    if index == 0 and zero_grad is not None and is_logged and not self._zeroed:
                        self._zeroed = True
                        zero_grad()
                    self._backward(result, one.weight)
            except RuntimeError as error:
                # Where ranks reduce in the last pass, the others are in the middle of it: nobody could begin anew.
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


def precision_of(trainer: Trainer) -> torch.dtype | None:
    """Return in what the passes of a trainer compute, None for what its parameters are of."""
    name = str(trainer.precision)
    return torch.bfloat16 if "bf16" in name else torch.float16 if name.startswith("16") else None
