"""The models of a loop as torch wraps them for several ranks; accelerate itself keeps those inside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch._guards import detect_fake_mode
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

if TYPE_CHECKING:
    from accelerate.accelerator import Accelerator


class Called(NamedTuple):
    """What a model was called with: the shapes and types of its tensors, without data."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Wrappers:
    """Sees in the first forward passes which model is inside which wrapper: nothing else tells.

    Args:
        accelerator: of the loop, with its models.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._seen: dict[torch.nn.Module, torch.nn.Module] = {}
        self._hooks = [
            model.register_forward_pre_hook(self._see, with_kwargs=True)
            for model in accelerator._models  # noqa: SLF001
        ]
        self.inputs: Called | None = None
        """What a model was called with last; None if there was no call, or it cannot be told."""

    def close(self) -> None:
        """Look no more."""
        while self._hooks:
            self._hooks.pop().remove()

    @property
    def are_known(self) -> bool:
        """Whether every model has been seen that may be in a wrapper."""
        models = self._accelerator._models  # noqa: SLF001 - accelerate tells by no other way
        return self._accelerator.num_processes == 1 or all(model in self._seen for model in models)

    @property
    def models(self) -> list[torch.nn.Module]:
        """The models, in their wrappers as far as these are known."""
        return [self._seen.get(model, model) for model in self._accelerator._models]  # noqa: SLF001 - as above

    def _see(self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Else the wrapper is compiled around it, and this is no part of that; or the model is run without data.
        if torch.compiler.is_compiling() or detect_fake_mode() is not None:
            return
        wrapper = DistributedDataParallel._get_active_ddp_module()  # noqa: SLF001 - as torch.compile asks
        self._seen[model] = model if wrapper is None else wrapper
        self.inputs = _called(args, kwargs)


def _called(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Called | None:
    try:
        return Called(*tree_map_only(torch.Tensor, lambda one: torch.empty_like(one, device="meta"), (args, kwargs)))
    except Exception:  # noqa: BLE001 - of tensors of some other kind, and this is within the user's own pass
        return None
