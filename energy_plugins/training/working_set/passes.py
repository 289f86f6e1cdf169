"""Forward and backward passes of a model, followed from one operation to the next, with or without data."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from energy_plugins.training.micro_batch.as_it_was import left_as_it_was
from energy_plugins.training.micro_batch.batch_tree import cut, joined, mapped, samples_in
from energy_plugins.training.working_set.allocations import Allocations
from energy_plugins.training.working_set.model_call import loss_of


@dataclass(frozen=True)
class Passes:
    """Two micro-batches of one optimizer step; all in bytes."""

    size: int
    """Samples in each."""
    resting_bytes: int
    """Parameters, buffers and the batch."""
    kept_bytes: int
    """What the forward pass keeps for the backward pass, the batch included."""
    gradient_bytes: int
    touched: tuple[int, ...]
    """What each operation of the forward pass reads and writes."""
    first: tuple[int, ...]
    """What is alive after each operation of the first micro-batch."""
    later: tuple[int, ...]
    """The same of the second, beside the gradients of the first."""


LossOf = Callable[[torch.nn.Module, object], torch.Tensor]
"""Returns the loss of a model on a batch."""


@dataclass(frozen=True)
class Place:
    """Where and how a model computes."""

    device: torch.device
    autocast: torch.dtype | None = None
    loss_of: LossOf = loss_of
    until_s: float = math.inf
    """When to give up, see `Allocations`."""

    def context(self) -> AbstractContextManager[object]:
        """Return what a forward pass runs in."""
        return nullcontext() if self.autocast is None else torch.autocast(self.device.type, self.autocast)


def passes_without_data(model: torch.nn.Module, batch: object, place: Place, size: int) -> Passes:
    """Run passes on tensors that have types, shapes and a device, but no data: nothing is computed, nothing allocated.

    Raises:
        Exception: what the model raises that needs the values of its data, or cannot be run so at all.
    """
    samples = samples_in(batch)

    def empty(leaf: object) -> object:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        shape = (size, *leaf.shape[1:]) if leaf.ndim and len(leaf) == samples else leaf.shape
        return torch.empty(shape, dtype=leaf.dtype, device=place.device)

    with left_as_it_was(model), _quietly(), FakeTensorMode(allow_non_fake_inputs=True):
        own = dict(chain(model.named_parameters(prefix="model"), model.named_buffers(prefix="model")))
        stand_ins = {name: without_data(tensor, place.device) for name, tensor in own.items()}
        runner = _Runner(model, place, size)
        found: Passes = torch.func.functional_call(runner, stand_ins, (mapped(batch, empty),))
    return found


def passes_for_real(model: torch.nn.Module, batch: object, place: Place, size: int) -> Passes:
    """Run passes on the data, with the model where it is; it is left as it was.

    Raises:
        Exception: what the model raises.
    """

    def there(leaf: object) -> object:  # a copy: a view would count as all that it is a view of
        return leaf.to(place.device, copy=True) if isinstance(leaf, torch.Tensor) else leaf

    whole = joined([batch] * -(-size // (samples_in(batch) or 1)))
    with left_as_it_was(model):
        return _Runner(model, place, size).forward(mapped(cut(whole, size)[0], there))


def without_data(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of the same kind without its data, if a mode that makes such tensors is on."""
    made = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device)
    is_parameter = isinstance(tensor, torch.nn.Parameter)
    return torch.nn.Parameter(made, requires_grad=tensor.requires_grad) if is_parameter else made


class _Runner(torch.nn.Module):
    """Runs the passes, as a module that holds the model: so its parameters can be replaced for all of them at once."""

    def __init__(self, model: torch.nn.Module, place: Place, size: int) -> None:
        super().__init__()
        self.model = model
        self._place = place
        self._size = size

    def forward(self, batch: object) -> Passes:
        parameters = list(self.model.parameters())
        tensors: list[torch.Tensor] = []
        mapped(batch, lambda leaf: tensors.append(leaf) if isinstance(leaf, torch.Tensor) else None)
        with Allocations(self._place.until_s) as seen:
            seen.hold(chain(parameters, self.model.buffers()))
            model = seen.live_bytes
            seen.hold(tensors)
            resting = seen.live_bytes
            loss = self._loss(batch)
            kept, forward = seen.live_bytes - model, len(seen.moments)
            loss.backward()
            del loss
            first = len(seen.moments)
            self._loss(batch).backward()
        gradients = (one.grad for one in parameters if one.grad is not None)
        return Passes(
            size=self._size,
            resting_bytes=resting,
            kept_bytes=kept,
            gradient_bytes=sum(one.numel() * one.element_size() for one in gradients),
            touched=tuple(seen.touched[:forward]),
            first=tuple(seen.moments[:first]),
            later=tuple(seen.moments[first:]),
        )

    def _loss(self, batch: object) -> torch.Tensor:
        with self._place.context():
            return self._place.loss_of(self.model, batch)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep torch from printing the whole trace of an operation that cannot do without data: it raises it, too."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
