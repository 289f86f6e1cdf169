"""The micro-batch of one training of a Trainer: whether it may be another, and which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from energy_plugins.measure.spans import Kind
from energy_plugins.training.guard import warn
from energy_plugins.training.micro_batch.batch_tree import sample_shape, samples_in
from energy_plugins.training.micro_batch.refusals import most_sizes, why_not
from energy_plugins.training.model_shape import shape_of
from energy_plugins.training.place import rank_of
from energy_plugins.training.replaced import Replaced
from energy_plugins.transformers.effective_batch import grown
from energy_plugins.transformers.micro_batches import MicroBatches
from energy_plugins.transformers.trainers import (
    MAY_FAIL,
    batch_of,
    precision_of,
    sum_over_ranks,
    why_no_micro_batch,
)

if TYPE_CHECKING:
    from transformers.trainer import Trainer

    from energy_plugins.training.micro_batch.batcher import MicroBatcher
    from energy_plugins.training.micro_batch.later_checks import CompareGroup
    from energy_plugins.training.micro_batch.plan import MicroBatchPlan
    from energy_plugins.training.monitor import Monitor


class MicroBatchFit:
    """Puts itself between a trainer and its model until `close`, or until the training fails.

    Args:
        trainer: whose training begins.
        monitor: of the training, told of the passes.
    """

    def __init__(self, trainer: Trainer, monitor: Monitor) -> None:
        self._trainer = trainer
        self._batcher: MicroBatcher | None = None
        self._has_said = False
        self._batches = MicroBatches(
            trainer,
            at_window=self._at_window,
            at_pass=partial(monitor.enter, Kind.FORWARD),
            allows=self._allows,
            out_of_memory=self._out_of_memory,
        )
        self._replaced = Replaced()
        for name in MAY_FAIL:
            self._replaced.cover(trainer, name, self._may_fail)

    def begin(self, monitor: Monitor) -> None:
        """Begin to decide, once the training is measured, or not. All ranks do."""
        trainer, args = self._trainer, self._trainer.args
        asked = monitor.config.micro_batch
        wrapped = trainer.model_wrapped.train()  # as in the first step: layers tell by it what they do
        known = why_no_micro_batch(trainer) or why_not(wrapped, allow_batch_statistics=asked.allow_batch_statistics)
        self._batcher = monitor.tune_micro_batch(
            asked,
            rank_of(args.process_index, args.world_size, args.local_process_index),
            partial(sum_over_ranks, args),
            why_not=known,
            most_sizes=most_sizes(wrapped),
            row_is_step=True,
            shape=self._shape,
            training_step=self._batches.training_step,
        )
        self._batcher.grown = grown(trainer)

    def close(self) -> None:
        """Put everything back."""
        self._replaced.close()
        self._batches.close()

    def _at_window(self) -> None:
        """Decide before the first pass of an optimizer step. Not guarded: looking is collective."""
        batcher, batches = self._batcher, self._batches
        if batcher is None:
            return
        if batcher.undecided:
            # What the loader yields as a rule: a resumed epoch may begin with its last batch, which is cut short.
            batch = batch_of(self._trainer) if batches.window and samples_in(batches.window[0]) else None
            accumulation = self._trainer.args.gradient_accumulation_steps
            batcher.consider(batch, accumulation, batches.compare, batches.window)
            batches.smaller = batcher.smaller
        batcher.probe(batches.try_pass)
        batches.plan = batcher.plan or (batcher.setting if batches.smaller else None)
        if batcher.settled and not self._has_said:
            self._has_said = True
            why = batcher.part().why
            if why and not batcher.has_said and self._trainer.args.process_index == 0:
                warn(f"the micro-batch is left alone: {why}")

    def _shape(self) -> str:
        """Return what the work is known by, once there is a window."""
        trainer, args = self._trainer, self._trainer.args
        samples = sample_shape(self._batches.window[0])
        return f"{shape_of([trainer.model_wrapped])} {args.optim} {precision_of(trainer)} {samples}"

    def _allows(self, group: Sequence[Any], plan: MicroBatchPlan, compare: CompareGroup) -> bool:
        return self._batcher is None or self._batcher.allows(group, plan, compare)

    def _out_of_memory(self, size: int) -> None:
        if self._batcher is not None:
            self._batcher.out_of_memory(size)

    def _may_fail(self, original: Callable[..., object], /, *args: object, **kwargs: object) -> object:
        try:
            return original(*args, **kwargs)
        except BaseException:
            self.close()
            raise
