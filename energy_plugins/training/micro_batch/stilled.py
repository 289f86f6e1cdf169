"""What cutting a batch would change, kept still: random numbers, and the statistics of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

_DROPOUTS = {
    functional.dropout,
    functional.dropout1d,
    functional.dropout2d,
    functional.dropout3d,
    functional.alpha_dropout,
    functional.feature_alpha_dropout,
    torch.dropout,
    torch.dropout_,
}

_DROPOUT_PLACES: dict[Callable[..., Any], int] = {
    functional.scaled_dot_product_attention: 4,
    functional.multi_head_attention_forward: 10,
}
"""Where ``dropout_p`` stands among the arguments of what drops out inside."""

_DRAWS = {
    torch.rand,
    torch.rand_like,
    torch.randn,
    torch.randn_like,
    torch.randint,
    torch.randint_like,
    torch.normal,
    torch.bernoulli,
    torch.Tensor.bernoulli,
    torch.Tensor.bernoulli_,
    torch.Tensor.exponential_,
    torch.Tensor.normal_,
    torch.Tensor.random_,
    torch.Tensor.uniform_,
}


class Stilled(TorchFunctionMode):
    """Within it dropout drops nothing, and what is drawn for samples is drawn once for all of them.

    So a loss with dropout, stochastic depth or noise can be compared over batches of another size. Whatever else is
    random (a permutation of the batch, for one) stays so.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rows: dict[tuple[object, ...], torch.Tensor] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        """Call ``func``, or what stands for it."""
        given = dict(kwargs or {})
        if func in _DROPOUTS:
            return args[0] if args else given["input"]
        place = _DROPOUT_PLACES.get(func)
        if place is not None and len(args) > place:
            args = (*args[:place], 0.0, *args[place + 1 :])
        elif place is not None:
            given["dropout_p"] = 0.0
        made = func(*args, **given)
        if func in _DRAWS and isinstance(made, torch.Tensor):
            row = self._rows.setdefault((func, made.shape[1:], made.dtype, made.device), _first_of(made))
            with torch.no_grad():
                made.copy_(row)
        return made


def _first_of(drawn: torch.Tensor) -> torch.Tensor:
    return (drawn.detach()[:1] if drawn.ndim else drawn.detach()).clone()


@contextmanager
def without_batch_statistics(model: torch.nn.Module) -> Iterator[int]:
    """Have BatchNorm normalise by what it has seen before, as in an evaluation; gives how many layers this changes."""
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    for layer in layers:
        layer.training = False
    try:
        yield len(layers)
    finally:
        for layer in layers:
            layer.training = True
