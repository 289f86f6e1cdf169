"""Growing the effective batch of a Trainer before it trains, where the user says so: this changes the training."""

from __future__ import annotations

import math
from collections.abc import Sized
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from transformers.trainer_callback import TrainerState

from energy_plugins.training.guard import TROUBLE, warn
from energy_plugins.training.replaced import Replaced
from energy_plugins.transformers.trainers import batch_of, saved_joules, states_of, why_no_micro_batch
from energy_plugins.tune import grow
from energy_plugins.tune.effective_batch import GrowthPlan
from energy_plugins.tune.learning_rate import rule_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from transformers.trainer import Trainer
    from transformers.training_args import TrainingArguments

    from energy_plugins.config import MicroBatchConfig

GROWTH = "growth"
"""The key under which a checkpoint has by how much the effective batch had grown."""


@dataclass(frozen=True)
class _Grown:
    """What was changed of a trainer's arguments."""

    plan: GrowthPlan
    accumulation: int
    """The user's, as what follows."""
    learning_rate: float
    max_steps: int
    warmup_steps: float

    @property
    def growth(self) -> int:
        return self.plan.after // self.plan.before

    def by(self, growth: int) -> _Grown:
        """Return the same for another growth."""
        plan = self.plan
        factor = plan.rule.factor(growth) if growth > 1 else 1.0
        after, accumulation = growth * plan.before, growth * self.accumulation
        return replace(self, plan=replace(plan, after=after, accumulation=accumulation, learning_rate_factor=factor))

    def apply(self, args: TrainingArguments) -> None:
        """Have a training that has not begun count by it."""
        growth = self.growth
        args.gradient_accumulation_steps = self.plan.accumulation
        args.learning_rate = self.learning_rate * self.plan.learning_rate_factor
        args.max_steps = math.ceil(self.max_steps / growth) if self.max_steps > 0 else self.max_steps
        # Below 1 it is a share of all.
        args.warmup_steps = math.ceil(self.warmup_steps / growth) if self.warmup_steps >= 1 else self.warmup_steps


_GROWN: WeakKeyDictionary[Trainer, _Grown] = WeakKeyDictionary()
"""Of each trainer of which something was changed."""


def grown(trainer: Trainer) -> str:
    """Return what a report is to say first of what was changed, empty if nothing was."""
    return _GROWN[trainer].plan.sentence if growth_of(trainer) > 1 else ""


def growth_of(trainer: Trainer | None) -> int:
    """Return by how much its effective batch has grown, 1 if it has not."""
    found = None if trainer is None else _GROWN.get(trainer)
    return 1 if found is None else found.growth


def grow_effective_batch(trainer: Trainer, asked: MicroBatchConfig) -> None:
    """Have a trainer that has not begun accumulate more batches, if that is asked for; the rest follows.

    The learning rate follows by the rule. Where the user counts optimizer steps, as many samples as before take fewer
    of them: ``max_steps`` and ``warmup_steps`` are divided. Why nothing changes is a warning.

    A training that is resumed goes on with the effective batch of its checkpoint: the trainer counts what has been seen
    in optimizer steps, and the checkpoint has their learning rates.
    """
    if not asked.enabled or asked.effective_batch != "grow" or trainer in _GROWN:
        return
    args = trainer.args
    if why := _why_not(trainer, asked):
        warn(f"the effective batch does not grow: {why}")
        return
    plan = grow(
        batch_of(trainer),
        args.gradient_accumulation_steps,
        ranks=args.world_size,
        most=_most(trainer, asked),
        rule=rule_of(asked.learning_rate_rule),
    )
    if plan is None:
        return
    found = _Grown(plan, args.gradient_accumulation_steps, args.learning_rate, args.max_steps, args.warmup_steps)
    found.apply(args)
    _GROWN[trainer] = found
    # The last that a trainer does with a checkpoint before it counts its steps.
    Replaced().cover(trainer, "_load_from_checkpoint", partial(_resuming, trainer))


def tell_of_other_growth(growth_now: int, saved: Mapping[str, Any]) -> None:
    """Warn if a training goes on whose effective batch had grown, by what a checkpoint has ``saved``, and does not."""
    growth = saved.get(GROWTH, 1)
    if growth_now == 1 and isinstance(growth, int) and growth > 1:
        warn(
            f"the checkpoint is of a training whose effective batch was {growth} times as large, and so are its steps "
            "and its learning rates: resume it with effective_batch='grow'"
        )


def _resuming(
    trainer: Trainer,
    original: Callable[..., object],
    /,
    checkpoint: str,
    *args: Any,  # noqa: ANN401 - the method's own
    **kwargs: Any,  # noqa: ANN401
) -> object:
    """Go on as a checkpoint was made."""
    loaded = original(checkpoint, *args, **kwargs)
    try:
        state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    except TROUBLE:
        return loaded  # the trainer will say so itself, if it needs it
    found, growth = _GROWN.get(trainer), _growth_in(state)
    if found is not None and state.global_step and growth != found.growth:
        _GROWN[trainer] = found.by(growth)
        _GROWN[trainer].apply(trainer.args)
        before = found.plan.before
        had = f"had grown from {before} to {before * growth}" if growth > 1 else f"was {before}"
        warn(
            f"the effective batch does not grow to {found.plan.after}: it {had} when the checkpoint was made, whose "
            "steps and learning rates are counted in that; it stays so, begin anew for another"
        )
    return loaded


def _growth_in(state: TrainerState) -> int:
    """Return by how much the effective batch of a checkpoint's training had grown."""
    states = states_of(state)
    found = [saved.get(GROWTH) for name in states if (saved := saved_joules(state, name)) is not None]
    return max((one for one in found if isinstance(one, int) and one >= 1), default=1)


def _most(trainer: Trainer, asked: MicroBatchConfig) -> int:
    """Return how many samples a step may have: no more than an epoch, at whose end a trainer steps anyway."""
    most = asked.max_effective_batch or 1
    if not isinstance(trainer.train_dataset, Sized):
        return most
    of_all: int = batch_of(trainer) * trainer.args.world_size
    return max(min(most, math.ceil(len(trainer.train_dataset) / of_all) * of_all), 1)


def _why_not(trainer: Trainer, asked: MicroBatchConfig) -> str:
    if asked.max_effective_batch is None:
        return "micro_batch.max_effective_batch is not given: say how far"
    if trainer.is_in_train:
        return "the training has begun already: add the callback when the Trainer is made"
    if trainer.optimizer is not None and asked.learning_rate_rule != "none":
        return "the optimizer was given to the Trainer ready-made: set its learning rate, and learning_rate_rule: none"
    return why_no_micro_batch(trainer)
