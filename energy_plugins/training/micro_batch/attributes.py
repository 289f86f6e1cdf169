"""The attributes of modules that count and keep things in their passes, put back after passes on trial."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

_OF_MODULES = frozenset(vars(torch.nn.Module()))
"""Parameters, buffers, modules and hooks, which are torch's own affair."""


@contextmanager
def attributes_kept(model: torch.nn.Module) -> Iterator[None]:
    """Put back, whatever happens in the block, attributes of ``model`` and its modules.

    So a module that counts its passes, or keeps losses in lists or dicts for the end of an epoch, does not know of
    those in the block; and one that has random generators of its own draws what it would have drawn. What objects of
    other classes keep is theirs.
    """
    modules = [module for module in model.modules() if not isinstance(module, DistributedDataParallel)]
    before = [(module, _own(module)) for module in modules]
    seen: dict[int, Callable[[], object]] = {}
    _noted([value for _, attributes in before for value in attributes.values()], seen)
    try:
        yield
    finally:
        for module, attributes in before:
            for name in _own(module).keys() - attributes.keys():
                del vars(module)[name]
            vars(module).update(attributes)
        for put_back in seen.values():
            put_back()


def _own(module: torch.nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _OF_MODULES}


def _noted(value: object, seen: dict[int, Callable[[], object]]) -> None:
    """Note the contents of a list, dict, set or deque, and of those within, and the states of random generators."""
    if id(value) in seen:
        return
    match value:
        case torch.Generator():
            seen[id(value)] = partial(value.set_state, value.get_state())
        case np.random.Generator():
            seen[id(value)] = partial(setattr, value.bit_generator, "state", value.bit_generator.state)
        case random.Random():
            seen[id(value)] = partial(value.setstate, value.getstate())
    if not isinstance(value, list | deque | dict | set):
        return
    items = list(value.items()) if isinstance(value, dict) else list(value)
    seen[id(value)] = _Noted(value, items).put_back
    for item in value.values() if isinstance(value, dict) else items:
        _noted(item, seen)


class _Noted(NamedTuple):
    value: Any
    items: list[Any]

    def put_back(self) -> None:
        """Fill it again, if anything in it is another."""
        value, items = self
        now = list(value.items()) if isinstance(value, dict) else list(value)
        if list(_ids(now)) != list(_ids(items)):
            value.clear()
            (value.extend if isinstance(value, list | deque) else value.update)(
                dict(items) if isinstance(value, dict) else items
            )


def _ids(items: list[Any]) -> Iterator[int]:
    return (id(part) for item in items for part in (item if isinstance(item, tuple) else (item,)))
