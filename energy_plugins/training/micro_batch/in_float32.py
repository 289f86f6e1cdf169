"""Work that is computed in float32, whatever precision a training has chosen: what differs then is no rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from energy_plugins.training.replaced import Replaced

_KINDS = ("cpu", "cuda")
"""Of devices whose autocast is left out."""


def can_be_exact(parameters: Sequence[torch.nn.Parameter]) -> bool:
    """Tell whether `in_float32` makes a model's passes exact: its parameters must be of that already."""
    return all(one.dtype is torch.float32 for one in parameters)


@contextmanager
def in_float32() -> Iterator[None]:
    """Leave autocast and TF32 out for a block, whoever enters autocast inside it: a trainer, or a model itself.

    Raises:
        RuntimeError: TF32 was chosen by torch's newer settings, beside which the older ones cannot be read.
    """
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with ExitStack() as after:
        for kind in _KINDS:
            after.callback(torch.set_autocast_enabled, kind, torch.is_autocast_enabled(kind))
            torch.set_autocast_enabled(kind, False)
        if matmul != "highest":
            after.callback(torch.set_float32_matmul_precision, matmul)
            torch.set_float32_matmul_precision("highest")
        if cudnn:
            after.callback(setattr, torch.backends.cudnn, "allow_tf32", cudnn)
            torch.backends.cudnn.allow_tf32 = False
        replaced = Replaced()
        after.callback(replaced.close)
        replaced.cover(torch, "set_autocast_enabled", _never)  # what `torch.autocast` calls when it is entered
        yield


def _never(original: Callable[..., None], /, *given: object) -> None:
    """Enable autocast for no device."""
    original(*given[:-1], False)
