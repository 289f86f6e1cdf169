"""When a model needs more memory than there is."""

from __future__ import annotations

import gc

import torch

_SAYS = ("CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "DefaultCPUAllocator: can't allocate memory")
"""What libraries say whose errors have no class of their own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether less work at once would not have failed."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _SAYS)


def free_caches() -> None:
    """Hand back what failed work has left behind. The exception must be gone, or its frames hold tensors still."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
