"""Calling a model on a batch as frameworks do by default, and finding the loss in what it returns."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch


def loss_of(model: torch.nn.Module, batch: object) -> torch.Tensor:
    """Return the loss of a model on a batch.

    A mapping is passed as keywords, of which those count that ``forward`` takes; of a list or tuple as many items as it
    requires are passed, the others being for a loss that it does not know. The loss is what the model returns as
    ``loss``; if it names none, the sum of its first tensor stands for one.

    Raises:
        TypeError: the model returns no tensor that could be a loss.
    """
    return loss_in(_call(model, batch))


def loss_in(returned: Any) -> torch.Tensor:  # noqa: ANN401 - whatever a model returns
    """Return the loss that a model returned, see `loss_of`.

    Raises:
        TypeError: there is no tensor that could be a loss.
    """
    named = returned.get("loss") if isinstance(returned, Mapping) else getattr(returned, "loss", None)
    loss = named if isinstance(named, torch.Tensor) else next(_differentiable(returned), None)
    if loss is None:
        raise TypeError(f"the model returns a {type(returned).__name__} in which there is nothing to differentiate")
    return loss if loss.ndim == 0 else loss.sum()


def _call(model: torch.nn.Module, batch: object) -> object:
    takes = inspect.signature(model.forward).parameters.values()
    if isinstance(batch, Mapping):
        takes_all = any(one.kind is one.VAR_KEYWORD for one in takes)
        named = {one.name for one in takes}
        return model(**{key: value for key, value in batch.items() if takes_all or key in named})
    if isinstance(batch, list | tuple):
        if any(one.kind is one.VAR_POSITIONAL for one in takes):
            return model(*batch)
        positional = (one for one in takes if one.kind in {one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD})
        required = sum(one.default is one.empty for one in positional)
        return model(*batch[: max(required, 1)])
    return model(batch)


def _differentiable(tree: Any) -> Iterator[torch.Tensor]:  # noqa: ANN401 - whatever a model returns
    match tree:
        case torch.Tensor():
            return (one for one in (tree,) if one.requires_grad)
        case Mapping():
            return (one for part in tree.values() for one in _differentiable(part))
        case list() | tuple():
            return (one for part in tree for one in _differentiable(part))
        case _:
            return iter(())
