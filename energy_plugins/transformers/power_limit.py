"""`PowerLimitCallback`: asks the `EnergyCallback` of a Trainer to limit the power of its trainings.

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


class PowerLimitCallback(TrainerCallback):
    """Finds the power limit at which a training draws least energy while its steps take hardly longer, and keeps it.

    It uses the `EnergyCallback` of the trainer, or adds one. The limit is searched for in windows of training steps,
    is watched afterwards, and is put back to what was found, however the training ends. Where nobody may set limits it
    goes on, and the report (`Report.power_limit`) says what would be needed. docs/power_limits.md has the rest.

    What is not given here is taken from the configuration (`energy_plugins.config`): the environment, or its file.

    Args:
        max_slowdown: By what share a step may take longer than at the limit found, of 0.03 if not given.
        objective: "energy", "energy_delay" or "zeus".
        fixed: A limit to set, in watts for each GPU; none is searched for.
        knob: "limit", "clocks" (locked ones), or "auto".
        clocks_unlocked: You assert that nobody has locked the clocks, which cannot be read; clocks need it.
        search_share: The most of the training that may pass while limits are tried, as a share: 0.05 if not given.
        host_power_w: What each machine draws beside its GPUs: slower steps cost that, too.
        eta: The weight of energy in the cost of Zeus.

    Raises:
        ConfigError: If a value is not allowed, here or in the configuration. It is a ValueError.

    Example::

        from transformers import Trainer
        from energy_plugins.transformers import PowerLimitCallback

        trainer = Trainer(model, args, train_dataset=data, callbacks=[PowerLimitCallback(max_slowdown=0.03)])

    """

    def __init__(  # noqa: PLR0913 - each is a separate wish of the user
        self,
        max_slowdown: float | None = None,
        *,
        objective: str | None = None,
        fixed: float | None = None,
        knob: str | None = None,
        clocks_unlocked: bool | None = None,
        search_share: float | None = None,
        host_power_w: float | None = None,
        eta: float | None = None,
    ) -> None:
        from energy_plugins.config import limit_asked  # noqa: PLC0415 - see above

        self._limit = limit_asked(
            max_slowdown=max_slowdown,
            objective=objective,
            fixed=fixed,
            knob=knob,
            clocks_unlocked=clocks_unlocked,
            search_share=search_share,
            host_power_w=host_power_w,
            eta=eta,
        )

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Ask before the first training begins."""
        self._ask(args)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Ask, in case this or the other callback was added later."""
        self._ask(args)

    def _ask(self, args: TrainingArguments) -> None:
        trainer = trainer_above()
        if trainer is not None:
            measuring_callback(trainer).limit_power(self._limit, trainer, args)
