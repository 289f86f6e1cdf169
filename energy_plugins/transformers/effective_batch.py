"""Growing the effective batch of a Trainer before it trains, where the user says so: this changes the training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from energy_plugins.training.guard import warn
from energy_plugins.transformers.trainers import batch_of, why_no_micro_batch
from energy_plugins.tune import grow
from energy_plugins.tune.learning_rate import rule_of

if TYPE_CHECKING:
    from transformers.trainer import Trainer

    from energy_plugins.config import MicroBatchConfig

_GROWN: WeakKeyDictionary[Trainer, str] = WeakKeyDictionary()
"""What was changed, in a sentence, of each trainer of which something was."""


def grown(trainer: Trainer) -> str:
    """Return what a report is to say first of what was changed, empty if nothing was."""
    return _GROWN.get(trainer, "")


def grow_effective_batch(trainer: Trainer, asked: MicroBatchConfig) -> None:
    """Have a trainer that has not begun accumulate more batches, if that is asked for; the rest follows.

    The learning rate follows by the rule. Where the user counts optimizer steps, as many samples as before take fewer
    of them: ``max_steps`` and ``warmup_steps`` are divided. Why nothing changes is a warning.
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
        most=asked.max_effective_batch or 1,
        rule=rule_of(asked.learning_rate_rule),
    )
    if plan is None:
        return
    growth = plan.after // plan.before
    args.gradient_accumulation_steps = plan.accumulation
    args.learning_rate *= plan.learning_rate_factor
    if args.max_steps > 0:
        args.max_steps = math.ceil(args.max_steps / growth)
    if args.warmup_steps >= 1:  # below it is a share of all
        args.warmup_steps = math.ceil(args.warmup_steps / growth)
    _GROWN[trainer] = plan.sentence


def _why_not(trainer: Trainer, asked: MicroBatchConfig) -> str:
    if asked.max_effective_batch is None:
        return "micro_batch.max_effective_batch is not given: say how far"
    if trainer.is_in_train:
        return "the training has begun already: add the callback when the Trainer is made"
    if trainer.optimizer is not None and asked.learning_rate_rule != "none":
        return "the optimizer was given to the Trainer ready-made: set its learning rate, and learning_rate_rule: none"
    return why_no_micro_batch(trainer)
