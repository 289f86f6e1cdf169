"""What a batch holds, told from its tensors' shapes: nothing is read from the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from itertools import chain

import torch


def work_of(batch: object) -> tuple[int | None, int | None]:
    """Return samples and tokens of a batch from the shape of its first tensor, None for what cannot be told."""
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    tokens = ids.numel() if isinstance(ids, torch.Tensor) else None
    first = next(_tensors(batch), None)
    return (len(first) if first is not None else None), tokens


def _tensors(batch: object) -> Iterator[torch.Tensor]:
    match batch:
        case torch.Tensor():
            if batch.ndim:
                yield batch
        case Mapping():
            yield from chain.from_iterable(map(_tensors, batch.values()))
        case list() | tuple():
            yield from chain.from_iterable(map(_tensors, batch))
        case _ if is_dataclass(batch):
            yield from chain.from_iterable(_tensors(getattr(batch, field.name)) for field in fields(batch))
