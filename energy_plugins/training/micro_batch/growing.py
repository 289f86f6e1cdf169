"""What frameworks share in growing an effective batch: what must be given, and learning rates that follow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from energy_plugins.errors import ConfigError

if TYPE_CHECKING:
    from energy_plugins.config import MicroBatchConfig

_OF_GROUPS = ("lr", "initial_lr", "max_lr", "min_lr")
"""Where parameter groups of optimizers hold learning rates; the last two are OneCycleLR's."""
_OF_SCHEDULERS = ("base_lrs", "max_lrs", "_last_lr")


def check(asked: MicroBatchConfig) -> None:
    """Raise ConfigError if the effective batch may grow, but nobody says how far."""
    if asked.enabled and asked.effective_batch == "grow" and asked.max_effective_batch is None:
        raise ConfigError(
            "effective_batch is 'grow', but max_effective_batch is not given; expected the most samples that an "
            "optimizer step of all ranks may have"
        )


def scale_learning_rates(optimizers: Iterable[torch.optim.Optimizer], schedulers: Iterable[Any], factor: float) -> None:
    """Multiply the learning rates of optimizers by ``factor``, with all that schedulers have noted of them.

    So a schedule goes on as if it had been made with these rates. Bounds that a user gave in absolute numbers
    (``eta_min``, ``min_lr`` of ReduceLROnPlateau) stay.
    """
    if factor == 1.0:
        return
    for optimizer in optimizers:
        if "lr" in optimizer.defaults:
            optimizer.defaults["lr"] *= factor
        for group in optimizer.param_groups:
            for key in _OF_GROUPS:
                if key in group:
                    group[key] = group[key] * factor
    for scheduler in schedulers:
        _scale(scheduler, factor)


def _scale(scheduler: Any, factor: float) -> None:  # noqa: ANN401 - torch's, and what users write like them
    for key in _OF_SCHEDULERS:
        rates = getattr(scheduler, key, None)
        if isinstance(rates, list):
            setattr(scheduler, key, [rate * factor for rate in rates])
    for inner in getattr(scheduler, "_schedulers", ()):  # SequentialLR and ChainedScheduler
        _scale(inner, factor)
