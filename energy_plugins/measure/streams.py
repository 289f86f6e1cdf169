"""The CUDA stream that the calling thread queues work on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

_asks: list[tuple[Callable[[int], int], Callable[[], int]]] = []
"""How to ask torch for the current stream of a device, and for that device, once it uses CUDA: to look for torch in
every step would cost as much as the mark."""
os.register_at_fork(after_in_child=_asks.clear)  # a forked child cannot use its parent's CUDA


def current_stream() -> int:
    """Return the handle of the current CUDA stream.

    Torch's if torch is loaded and uses CUDA, else the default stream (0).
    """
    if not _asks:
        return _first()
    stream_of, device = _asks[0]
    return stream_of(device())


def _first() -> int:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    native = sys.modules.get("torch._C")
    # Ten times quicker than the public call.
    stream_of, device = (getattr(native, name, None) for name in ("_cuda_getCurrentRawStream", "_cuda_getDevice"))
    if stream_of is None or device is None:
        _asks.append((lambda _: int(torch.cuda.current_stream().cuda_stream), int))
    else:
        _asks.append((stream_of, device))
    return current_stream()
