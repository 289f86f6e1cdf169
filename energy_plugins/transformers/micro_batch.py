"""`MicroBatchCallback`: asks the `EnergyCallback` of a Trainer to choose how many samples go through its model at once.

It is imported wherever trainings may be measured, so what is not needed then is imported when a callback is made.
"""

# ruff: noqa: ARG002 - events come with what transformers gives them

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers.trainer_callback import TrainerCallback

from energy_plugins.transformers.callback import measuring_callback
from energy_plugins.transformers.trainers import trainer_above

if TYPE_CHECKING:
    from transformers.trainer_callback import TrainerControl, TrainerState
    from transformers.training_args import TrainingArguments


class MicroBatchCallback(TrainerCallback):
    """Finds the micro-batch at which a training draws least energy, and trains with it; the gradients stay the same.

    The loader, its batches and the optimizer steps are left as they are. Inside of a step a batch goes through the
    model in equal parts, or the batches of one gradient accumulation several at once, so every optimizer step sees the
    same samples on every rank. Before anything changes batches of three steps are run both ways, and later ones are
    looked at; where the gradients are not the same, but for rounding, nothing changes, and the report says by how much
    they differ. docs/micro_batch.md has the rest.

    It uses the `EnergyCallback` of the trainer, or adds one. What is not given here is taken from the configuration
    (`energy_plugins.config`): the environment, or its file.

    Args:
        size: Samples that go through the model at once: a divisor of the batch, or a multiple of it that makes whole
            parts of the accumulated batches. None is searched for then.
        search_share: The most of the training that may pass while sizes are tried, as a share: 0.05 if not given.
        allow_batch_statistics: Whether a model may be tuned whose results depend on the micro-batch, as BatchNorm's
            do in training: this changes what is trained.
        effective_batch: "keep", or "grow": more samples in each optimizer step, which is another training.
        max_effective_batch: How many of all ranks at most, where it may grow.
        learning_rate_rule: How the learning rate follows: "linear", "sqrt", "none".

    Raises:
        ConfigError: If a value is not allowed, here or in the configuration. It is a ValueError.

    Example::

        from transformers import Trainer
        from energy_plugins.transformers import MicroBatchCallback

        trainer = Trainer(model, args, train_dataset=data, callbacks=[MicroBatchCallback()])

    """

    def __init__(  # noqa: PLR0913 - each is a separate wish of the user
        self,
        size: int | None = None,
        *,
        search_share: float | None = None,
        allow_batch_statistics: bool | None = None,
        effective_batch: str | None = None,
        max_effective_batch: int | None = None,
        learning_rate_rule: str | None = None,
    ) -> None:
        from energy_plugins.config import micro_batch_asked  # noqa: PLC0415 - see above
        from energy_plugins.training.micro_batch.growing import check  # noqa: PLC0415

        self._asked = micro_batch_asked(
            size=size,
            search_share=search_share,
            allow_batch_statistics=allow_batch_statistics,
            effective_batch=effective_batch,
            max_effective_batch=max_effective_batch,
            learning_rate_rule=learning_rate_rule,
        )
        check(self._asked)

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Ask before the first training begins."""
        self._ask()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Ask, in case this or the other callback was added later."""
        self._ask()

    def _ask(self) -> None:
        trainer = trainer_above()
        if trainer is not None:
            measuring_callback(trainer).tune_micro_batch(self._asked, trainer)
