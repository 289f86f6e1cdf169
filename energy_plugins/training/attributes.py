"""What modules keep of a pass as attributes, and what of it must not stay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def attributes_left(model: torch.nn.Module) -> Iterator[None]:
    """Put back, whatever happens in the block, what the modules of ``model`` have as attributes, in lists and in dicts.

    They may keep something of a pass, and after a trial that may be tensors without data.
    """
    attributes = [vars(module) for module in model.modules()]
    dicts = [*attributes, *(value for one in attributes for value in one.values() if isinstance(value, dict))]
    lists = [value for one in attributes for value in one.values() if isinstance(value, list)]
    kept_dicts, kept_lists = [one.copy() for one in dicts], [one.copy() for one in lists]
    try:
        yield
    finally:
        for now, before in zip(dicts, kept_dicts, strict=True):
            if now.keys() != before.keys() or any(now[key] is not before[key] for key in before):
                now.clear()
                now.update(before)
        for row, kept in zip(lists, kept_lists, strict=True):
            row[:] = kept
