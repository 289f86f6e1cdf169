"""Which tensors are alive at every moment of a pass, and their bytes; they need not hold any data."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Within it the storage of each tensor that an operation makes is counted until it is freed.

    So what views share is counted once, and what autograd keeps is counted for as long as it keeps it. What a kernel
    takes while it runs, for itself alone, is not seen.

    Args:
        until_s: when to give up, by `time.monotonic`: the first operation after it raises TimeoutError.
    """

    def __init__(self, until_s: float = math.inf) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._until_s = until_s
        self.live_bytes = 0
        self.moments: list[int] = []
        """What was alive after each operation."""
        self.touched: list[int] = []
        """What each operation read and wrote."""
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def hold(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count tensors that were there before."""
        for tensor in tensors:
            self._count(storage := tensor.untyped_storage(), storage.nbytes())

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        """Call ``func``, and look at what it made."""
        made = func(*args, **(kwargs or {}))
        if not isinstance(made, torch.Tensor | list | tuple):  # a question, such as for the device
            return made
        if time.monotonic() > self._until_s:  # not in a question: torch asks where nothing may be raised
            raise TimeoutError("it takes too long")
        read, written = _tensors((args, kwargs)), _tensors(made)
        for tensor in read:  # whatever else was there before is none of ours
            self._count(tensor.untyped_storage(), 0)
        self.hold(written)
        self.moments.append(self.live_bytes)
        self.touched.append(_bytes((*read, *written)))
        return made

    def _count(self, storage: torch.UntypedStorage, size_bytes: int) -> None:
        key = id(storage)
        if key not in self._alive:
            self._alive[key] = weakref.ref(storage, partial(self._freed, key, size_bytes))
            self.live_bytes += size_bytes

    def _freed(self, key: int, size_bytes: int, _: object) -> None:
        del self._alive[key]
        self.live_bytes -= size_bytes


def _tensors(tree: object) -> list[torch.Tensor]:
    """Return the tensors that have a storage of their own; a sparse one is made of others, which are seen, too."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided]


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes behind tensors: of views no more than their elements, and no storage more than once."""
    sizes: dict[int, int] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        own = sizes.get(id(storage), 0) + tensor.numel() * tensor.element_size()
        sizes[id(storage)] = min(own, storage.nbytes())
    return sum(sizes.values())
