"""The micro-batch of one training of a Trainer: whether it may be another, and which."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from energy_plugins.errors import BatchError
from energy_plugins.training.all_ranks import AllRanks
from energy_plugins.training.guard import warn
from energy_plugins.training.micro_batch_gate import Gate
from energy_plugins.training.micro_batch_plan import MicroBatchPlan
from energy_plugins.training.place import rank_of
from energy_plugins.training.replaced import Replaced
from energy_plugins.transformers.micro_batches import MicroBatches
from energy_plugins.transformers.trainers import MAY_FAIL, batch_of, sum_over_ranks, why_no_micro_batch

if TYPE_CHECKING:
    from transformers.trainer import Trainer
    from transformers.training_args import TrainingArguments

    from energy_plugins.config import MicroBatchConfig


class MicroBatchFit:
    """Begun with a training, and closed with it, or by what ends it.

    Args:
        asked: what is asked for.
        trainer: whose training begins.
        args: its arguments.
        at_pass: called before each pass of a batch but the first.
    """

    def __init__(
        self, asked: MicroBatchConfig, trainer: Trainer, args: TrainingArguments, at_pass: Callable[[], None]
    ) -> None:
        self._batches = MicroBatches(trainer, at_window=self._at_window, at_pass=at_pass)
        self._replaced = Replaced()
        for name in MAY_FAIL:
            self._replaced.cover(trainer, name, self._may_fail)
        who = rank_of(args.process_index, args.world_size, args.local_process_index)
        self._plan, why_not = _plan(asked, trainer, args)
        self._gate = Gate(AllRanks(who, partial(sum_over_ranks, args)), why_not)

    def close(self) -> None:
        """Put everything back."""
        self._replaced.close()
        self._batches.close()

    def _may_fail(self, original: Callable[..., object], /, *args: object, **kwargs: object) -> object:
        try:
            return original(*args, **kwargs)
        except BaseException:
            self.close()
            raise

    def _at_window(self) -> None:
        if self._gate.is_open is not None:
            return
        plan = self._plan
        self._gate.look(lambda: None if plan is None else self._batches.compare(plan))
        if self._gate.is_open:
            self._batches.plan = plan
        elif self._gate.is_open is False:
            warn(f"the micro-batch stays as it is: {self._gate.why_not}")


def _plan(asked: MicroBatchConfig, trainer: Trainer, args: TrainingArguments) -> tuple[MicroBatchPlan | None, str]:
    """Return what is to be done, or why nothing is."""
    if why_not := why_no_micro_batch(trainer):
        return None, why_not
    if asked.size is None:
        return None, "none is searched for yet"
    try:
        return MicroBatchPlan(batch_of(trainer), args.gradient_accumulation_steps, asked.size), ""
    except BatchError as error:
        return None, str(error)
