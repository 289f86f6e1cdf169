"""`micro_batched`: the line of a loop of one's own that lets its micro-batch be another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from energy_plugins.accelerate.attached import attach, attach_unmeasured, attached, latest
from energy_plugins.accelerate.micro_batches import Arguments, LossOf, MicroBatches
from energy_plugins.config import micro_batch_asked
from energy_plugins.errors import ConfigError
from energy_plugins.training.guard import warn
from energy_plugins.training.micro_batch.batch_tree import sample_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from accelerate.accelerator import Accelerator

    from energy_plugins.config import MicroBatchConfig
    from energy_plugins.training.micro_batch.batcher import MicroBatcher
    from energy_plugins.training.micro_batch.gradient_check import GradientCheck
    from energy_plugins.training.micro_batch.plan import MicroBatchPlan
    from energy_plugins.training.working_set.followed import TrainingStep

_REDUCTIONS = ("mean", "sum")


def micro_batched(  # noqa: PLR0913 - each is a separate wish of the user
    loss_of: LossOf,
    accelerator: Accelerator | None = None,
    *,
    size: int | None = None,
    reduction: str = "mean",
    search_share: float | None = None,
    allow_batch_statistics: bool | None = None,
) -> LossOf:
    """Return what a loop calls instead of ``loss_of``, so that batches can be cut and joined on their way to the model.

    The rest of the loop stays: it gets a loss, gives it to ``accelerator.backward``, and steps. Which micro-batch draws
    least energy is searched for while it trains. Before anything changes batches of three optimizer steps are run both
    ways, and later ones are looked at: where the gradients are not the same, but for rounding, nothing changes, and the
    report says by how much they differ (`Report.micro_batch`). docs/micro_batch.md has the rest.

    A search needs the loop to be measured: if nothing measures it yet, this does, as `attach`. What is not given here
    is taken from the configuration (`energy_plugins.config`): the environment, or its file.

    Args:
        loss_of: takes a batch, in as many arguments as it likes, and returns its loss. It is called with parts of a
            batch and with several joined, so all that it does must be of the samples it is given.
        accelerator: what the loop uses; if not given, what `attach` was called with last.
        size: samples that go through the model at once; none is searched for, and nothing need be measured.
        reduction: "mean" where the loss is a mean over the samples of a batch, "sum" where losses of batches are added
            up, as of those divided by the number of tokens in all of them.
        search_share: the most of the training that may pass while sizes are tried, as a share.
        allow_batch_statistics: whether results may depend on the micro-batch, as those of BatchNorm do.

    Raises:
        ConfigError: if a value is not allowed. It is a ValueError.

    Example::

        loss_of = micro_batched(lambda batch: model(**batch).loss, accelerator)
        for batch in loader:
            with accelerator.accumulate(model):
                accelerator.backward(loss_of(batch))
                optimizer.step()
                optimizer.zero_grad()

    """
    if reduction not in _REDUCTIONS:
        raise ConfigError(f"reduction is {reduction!r}; expected one of {', '.join(_REDUCTIONS)}")
    asked = micro_batch_asked(size=size, search_share=search_share, allow_batch_statistics=allow_batch_statistics)
    return MicroBatched(loss_of, accelerator, asked, adds_up=reduction == "sum")


class MicroBatched:
    """A function that returns the loss of a batch; see `micro_batched`."""

    def __init__(
        self, loss_of: LossOf, accelerator: Accelerator | None, asked: MicroBatchConfig, *, adds_up: bool
    ) -> None:
        self._loss_of = loss_of
        self._accelerator = accelerator
        self._asked = asked
        self._adds_up = adds_up
        self._tuned: _Tuned | None = None
        self._given_up = False

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ANN401 - a batch of any kind
        """Return the loss of a batch."""
        if torch.is_grad_enabled() and not self._given_up:
            self._tuned = self._tuned or self._begin()
        if self._tuned is None or not torch.is_grad_enabled() or self._tuned.evaluates:
            return self._loss_of(*args, **kwargs)
        return self._tuned.loss(Arguments(args, kwargs))

    def _begin(self) -> _Tuned | None:
        accelerator = self._accelerator or latest()
        if accelerator is None:
            self._given_up = True
            warn("the micro-batch is left alone: micro_batched was given no accelerator, and attach was never called")
            return None
        return _Tuned(accelerator, self._loss_of, self._asked, adds_up=self._adds_up)


class _Tuned:
    """The batches of a loop, and who decides on them."""

    def __init__(self, accelerator: Accelerator, loss_of: LossOf, asked: MicroBatchConfig, *, adds_up: bool) -> None:
        handle = attached(accelerator)
        if handle is None:
            handle = attach(accelerator) if asked.size is None else attach_unmeasured(accelerator)
        self._accelerator = accelerator
        self._batcher: MicroBatcher = handle.tune_micro_batch(asked, self._sample, self._training_step)
        self._batches = MicroBatches(
            accelerator,
            loss_of,
            adds_up=adds_up,
            allows=self._batcher.allows,
            out_of_memory=self._batcher.out_of_memory,
        )
        self._windows = 0
        self._has_trained = False
        """Whether the models have been in training mode; who trains them in the other is not in an evaluation."""
        self._begins = True
        """Whether the next batch is the first of a window."""
        self._has_said = False

    @property
    def evaluates(self) -> bool:
        """Whether the loop is in an evaluation, though it may compute gradients there."""
        models = self._accelerator._models  # noqa: SLF001 - accelerate tells by no other way
        trains = any(model.training for model in models)
        self._has_trained |= trains
        return self._has_trained and not trains

    def loss(self, batch: Arguments) -> torch.Tensor:
        """Return the loss of a batch; decide with the last one of an optimizer step, before it runs."""
        batches, batcher = self._batches, self._batcher
        if self._begins:
            batches.plan = batcher.plan
        if batcher.wants_windows or batches.plan is not None:  # else nobody needs it again, and it takes memory
            batches.window.append(batch)
        if batches.is_whole and batcher.undecided and self._windows:
            self._decide()
        elif batches.is_whole:
            batcher.probe(batches.try_pass)
        self._say()
        try:
            return batches.loss(batch, is_watched=batcher.undecided)
        finally:
            self._begins = batches.is_whole
            if self._begins:
                batches.window = []
                self._windows += 1

    def _sample(self) -> str:
        return sample_shape(self._batches.window[0])

    def _training_step(self) -> TrainingStep:
        return self._batches.training_step()

    def _decide(self) -> None:
        """Look at the window. Not guarded: it is collective, on all ranks with the same batch."""
        batches, batcher = self._batches, self._batcher
        accumulation = self._accelerator.gradient_accumulation_steps
        batcher.consider(batches.batch, accumulation, self._compare, batches.window)
        if not batcher.undecided:
            batches.wrappers.close()

    def _say(self) -> None:
        """Say once why nothing changes, if nothing does."""
        if self._has_said or not self._batcher.settled:
            return
        self._has_said = True
        why = self._batcher.part().why
        if why and not self._batcher.has_said and self._accelerator.is_main_process:
            warn(f"the micro-batch is left alone: {why}")

    def _compare(self, batches: Sequence[Any], plan: MicroBatchPlan) -> GradientCheck | None:
        factor = self._batches.factor
        if self._batches.trouble:
            raise ValueError(self._batches.trouble)
        if factor is None:
            return None
        if not self._batches.wrappers.are_known:
            raise ValueError(
                "what reduces the gradients of a model over ranks was not seen, perhaps because it is compiled: "
                "compile the model before it is prepared"
            )
        if factor != 1.0:
            raise ValueError(
                f"the loop multiplies its losses by {factor:g} before accelerator.backward, which nobody can see who "
                "runs passes of their own: let accelerator.accumulate divide them, or do it in the function"
            )
        return self._batches.compare(batches, plan)
