"""The passes through a model that batches become: parts of one, or several as one, each with the weight of its loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.nn.parallel import DistributedDataParallel

from energy_plugins.errors import BatchError
from energy_plugins.training.micro_batch.batch_tree import cut, joined, samples_in
from energy_plugins.training.micro_batch.plan import MicroBatchPlan


class Pass(NamedTuple):
    """One forward and backward pass."""

    batch: Any
    weight: float = 1.0
    """By which its loss is multiplied, so that the gradients add up to those of the batches as they came."""
    last: Any = None
    """The last of these batches."""


def passes(batches: Sequence[Any], plan: MicroBatchPlan, *, adds_up: bool) -> list[Pass]:
    """Return what runs instead of ``batches``, in the order of their samples.

    What cannot be cut or joined runs as it came: batches of unequal length, or whose losses are means over unequal
    numbers of samples.

    Args:
        batches: one to be cut, or those that are to run together.
        plan: what is to be made of them.
        adds_up: whether losses are sums over samples with one divisor for the whole window. If not, they are means.
    """
    as_they_came = [Pass(batch, last=batch) for batch in batches]
    try:
        if len(batches) == 1:
            return _cut(batches[0], plan.size, adds_up=adds_up)
        if not adds_up and len({samples_in(batch) for batch in batches}) > 1:
            return as_they_came  # the window gives each batch's mean the same weight, however few its samples
        return [Pass(joined(batches), 1.0 if adds_up else float(len(batches)), batches[-1])]
    except BatchError:
        return as_they_came


def _cut(batch: object, size: int, *, adds_up: bool) -> list[Pass]:
    samples = samples_in(batch)
    if samples is None or samples <= size:
        return [Pass(batch, last=batch)]
    parts = cut(batch, size)
    if samples % size == 1 and size > 1:
        # One sample alone has no statistics, and is compiled apart.
        parts[-2:] = [joined(parts[-2:])]
    return [Pass(part, 1.0 if adds_up else (samples_in(part) or 0) / samples, batch) for part in parts]


@contextmanager
def unheard(model: torch.nn.Module) -> Iterator[None]:
    """Have passes of a model be this rank's alone: no gradient is reduced, no buffer is handed round."""
    model = getattr(model, "_orig_mod", model)  # of one that is compiled
    if not isinstance(model, DistributedDataParallel):
        yield
        return
    # Buffers are handed round in the first forward pass after a reduction, whatever `no_sync` says.
    before, model.require_forward_param_sync = model.require_forward_param_sync, False
    try:
        with model.no_sync():
            yield
    finally:
        model.require_forward_param_sync = before
