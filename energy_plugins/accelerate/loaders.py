"""Loaders whose batches are seen on their way, by a class put over theirs: ``for`` looks for ``__iter__`` there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

_CLASS = object.__dict__["__class__"]
"""How a class is set where `accelerate` has made ``__class__`` something else."""


def with_batches(loader: object, batches: Callable[[Iterator[object]], Iterator[object]]) -> Callable[[], None]:
    """Have all batches of a loader go through ``batches``, and return how to put it back."""
    plain: Any = type(loader)

    def iterate(self: object) -> Iterator[object]:
        return batches(iter(plain.__iter__(self)))

    ours = type(plain.__name__, (plain,), {"__iter__": iterate, "__module__": plain.__module__})
    _CLASS.__set__(loader, ours)

    def put_back() -> None:
        if type(loader) is ours:
            _CLASS.__set__(loader, plain)

    return put_back
