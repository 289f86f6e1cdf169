"""Growing the effective batch of a fit before it trains, where the user says so: this changes the training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from energy_plugins.training.guard import warn
from energy_plugins.training.micro_batch.growing import scale_learning_rates
from energy_plugins.training.replaced import Replaced
from energy_plugins.tune import grow
from energy_plugins.tune.learning_rate import rule_of

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from energy_plugins.config import MicroBatchConfig

_KEY = "learning_rate_factor"
_GROWTH = "growth"


class EffectiveBatch:
    """Has one fit accumulate more batches, from before its optimizers are made until `close`.

    ``max_steps`` and ``min_steps`` count optimizer steps, so they are divided, but for those that a checkpoint has
    made: as many samples as before take fewer. What the module asks the trainer for in ``configure_optimizers``
    (``estimated_stepping_batches``) is right already.

    Args:
        trainer: whose fit is being set up.
        module: what it fits.
        asked: how far.
        why_not: returns why this fit must be left as it is; empty if nothing is known. Asked when its strategy is set.
    """

    def __init__(
        self, trainer: Trainer, module: LightningModule, asked: MicroBatchConfig, why_not: Callable[[], str]
    ) -> None:
        self.sentence = ""
        """What a report is to say first of what was changed, empty if nothing was."""
        self._trainer = trainer
        self._asked = asked
        self._why_not = why_not
        self._factor = 1.0
        """Of the learning rates."""
        self._growth = 1
        """How many optimizer steps of the user's one has become."""
        self._restored: float | None = None
        """The factor of the training that a checkpoint is of, None without one."""
        self._made = (0, 1)
        """Its optimizer steps, and its growth."""
        self._changed = Replaced()
        self._changed.cover(module, "configure_optimizers", self._configuring)

    def close(self) -> None:
        """Put the trainer's settings back."""
        self._changed.close()

    def begin(self) -> None:
        """Have the learning rates follow, when optimizers have been made, and no state has been loaded into them."""
        self._scale(self._factor)

    def resumed(self) -> None:
        """Have learning rates that came from a checkpoint follow, unless they did so when it was written."""
        if self._restored is not None:
            self._scale(self._factor / self._restored)

    def load(self, state: Mapping[str, Any] | None, steps: int) -> None:
        """Take note of what a checkpoint holds of us, None if nothing, and of how many optimizer steps it has made."""
        self._restored = float((state or {}).get(_KEY, 1.0))
        self._made = steps, int((state or {}).get(_GROWTH, 1))

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint is to hold."""
        return {_KEY: self._factor, _GROWTH: self._growth, "grown": self.sentence} if self.sentence else {}

    def _scale(self, factor: float) -> None:
        schedulers = [config.scheduler for config in self._trainer.lr_scheduler_configs]
        scale_learning_rates(self._trainer.optimizers, schedulers, factor)

    def _configuring(self, original: Callable[[], object], /) -> object:
        if not self.sentence:
            self._grow()
        return original()

    def _grow(self) -> None:
        trainer = self._trainer
        if not (why := self._why_not()):
            trainer.fit_loop.setup_data()  # as for `Trainer.estimated_stepping_batches`
        batch = None if why else _batch_of(trainer.train_dataloader)
        if batch is None:
            why = why or "how many samples the loader's batches have cannot be told: it has no batch_size"
            warn(f"the effective batch does not grow: {why}")
            return
        plan = grow(
            batch,
            trainer.accumulate_grad_batches,
            ranks=trainer.world_size,
            most=self._most(batch),
            rule=rule_of(self._asked.learning_rate_rule),
        )
        if plan is None:
            return
        self._growth = plan.after // plan.before
        loop = trainer.fit_loop.epoch_loop
        self._set(trainer, "accumulate_grad_batches", plan.accumulation)
        for name, steps in (("max_steps", loop.max_steps), ("min_steps", loop.min_steps)):
            if steps is not None and steps > 0:
                self._set(loop, name, self._in_larger(steps))
        self._factor, self.sentence = plan.learning_rate_factor, plan.sentence

    def _most(self, batch: int) -> int:
        """Return how many samples a step may have: no more than an epoch, at whose end a trainer steps anyway."""
        trainer, asked = self._trainer, self._asked.max_effective_batch or 1
        in_epoch = trainer.num_training_batches * batch * trainer.world_size
        return asked if math.isinf(in_epoch) else max(min(asked, int(in_epoch)), 1)

    def _in_larger(self, steps: int) -> int:
        """Return at which optimizer step there have been as many samples as in so many of the user's."""
        made, growth = self._made
        return made + max(math.ceil((steps - made * growth) / self._growth), 0)

    def _set(self, owner: object, name: str, value: int) -> None:
        before = getattr(owner, name)
        self._changed.undo(lambda: setattr(owner, name, before))
        setattr(owner, name, value)


def _batch_of(loader: object) -> int | None:
    """Return the samples of a batch, None if they are not known before it comes, or there are several loaders."""
    sampler = getattr(loader, "batch_sampler", None)
    for size in (getattr(loader, "batch_size", None), getattr(sampler, "batch_size", None)):
        if isinstance(size, int):
            return size
    return None
