"""The CUDA stream that the calling thread queues work on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

_query: list[Callable[[], int]] = []
"""How to ask torch, once it uses CUDA: to look for torch in every step would cost as much as the mark."""
os.register_at_fork(after_in_child=_query.clear)  # a forked child cannot use its parent's CUDA


def current_stream() -> int:
    """Return the handle of the current CUDA stream.

    Torch's if torch is loaded and uses CUDA, else the default stream (0).
    """
    return _query[0]() if _query else _first()


def _first() -> int:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    native = sys.modules.get("torch._C")
    # Ten times quicker than the public call.
    raw, device = (getattr(native, name, None) for name in ("_cuda_getCurrentRawStream", "_cuda_getDevice"))
    if raw is None or device is None:
        _query.append(lambda: int(torch.cuda.current_stream().cuda_stream))
    else:
        _query.append(lambda: int(raw(device())))
    return _query[0]()
