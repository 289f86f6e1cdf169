"""The working set of a training that is under way: followed without data, in little time, and without a trace of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from energy_plugins.errors import ConfigError
from energy_plugins.training.micro_batch.batch_tree import samples_in
from energy_plugins.training.micro_batch.gradient_check import uncompiled
from energy_plugins.training.working_set.model_call import loss_of
from energy_plugins.training.working_set.optimizer import OptimizerBytes
from energy_plugins.training.working_set.passes import LossOf, Place, passes_without_data
from energy_plugins.training.working_set.traced import inner_of, said, sets_of, stepped
from energy_plugins.tune.working_set import WorkingSet

MOST_S = 10.0
"""Seconds after which it is given up. A GPT-2 of 150 million parameters takes 3 to 5 s on a slow CPU core."""


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """What a framework knows of the steps of a training."""

    model: torch.nn.Module
    """Holds all parameters."""
    batch: object
    """What the loader yields."""
    optimizers: Sequence[object] = ()
    autocast: torch.dtype | None = None
    """None where passes compute in the types of the parameters, or see to it themselves."""
    loss_of: LossOf = loss_of

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next((one.device for one in self.model.parameters()), torch.device("cpu"))


def followed(step: TrainingStep, most_s: float = MOST_S) -> WorkingSet:
    """Return the working set of a training step; nothing is computed, and the training is left as it was.

    Unlike `WorkingSet.of` it never runs a model for real: a training has its memory in use, and its ranks wait.

    Raises:
        ConfigError: it cannot be followed, or not within ``most_s`` seconds; the message says why.
    """
    notes: list[str] = []
    model, samples = inner_of(step.model, notes), samples_in(step.batch)
    if not samples:
        raise ConfigError("how many samples a batch holds cannot be told")
    parameters: list[Any] = list(model.parameters())
    kinds = {type(one).__name__ for one in parameters if is_traceable_wrapper_subclass(one)}
    if kinds:
        raise ConfigError(f"parameters are sharded, or packed in another way ({', '.join(sorted(kinds))})")
    place = Place(step.device, step.autocast, step.loss_of, until_s=time.monotonic() + most_s)
    try:
        with uncompiled():
            one, other = (passes_without_data(model, step.batch, place, size) for size in (samples, 2 * samples))
    except TimeoutError as error:
        raise ConfigError(f"to follow the model takes more than {most_s:g} s") from error
    except Exception as error:
        raise ConfigError(f"without data the model cannot be followed: {said(error)}") from error
    return sets_of(model, (one, other), _all(step.optimizers, place.device), notes)


def _all(optimizers: Sequence[object], device: torch.device) -> OptimizerBytes:
    notes: list[str] = []
    each = [known for one in optimizers if (known := stepped(one, device, notes)) is not None]
    if notes:
        raise ConfigError(notes[0])
    return OptimizerBytes(sum(one.state_bytes for one in each), max((one.momentary_bytes for one in each), default=0))
