"""The CUDA stream that the calling thread queues work on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import ModuleType

_stream_of: Callable[[int], int] | None = None
"""How to ask torch for the current stream of a device, once it uses CUDA."""
_device: Callable[[], int] = int
"""And for its current device."""


def current_stream() -> int:
    """Return the handle of the current CUDA stream.

    Torch's if torch is loaded and uses CUDA, else the default stream (0).
    """
    return _first() if _stream_of is None else _stream_of(_device())


def _first() -> int:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    global _stream_of, _device
    _stream_of, _device = _questions(torch)
    return _stream_of(_device())


def _questions(torch: ModuleType) -> tuple[Callable[[int], int], Callable[[], int]]:
    raw = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # noqa: SLF001 - ten times quicker than the public call
    device = getattr(torch._C, "_cuda_getDevice", None)  # noqa: SLF001
    if raw is None or device is None:
        return lambda _: int(torch.cuda.current_stream().cuda_stream), int
    return raw, device


def _forget() -> None:
    global _stream_of  # noqa: PLW0603
    _stream_of = None


os.register_at_fork(after_in_child=_forget)  # a forked child cannot use its parent's CUDA
