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


class Work:
    """What the batches of one step hold together; None once that of one of them cannot be told."""

    def __init__(self) -> None:
        self.batches = 0
        self._samples: int | None = 0
        self._tokens: int | None = 0

    def add(self, batch: object) -> None:
        """Count one more."""
        samples, tokens = work_of(batch)
        self.batches += 1
        self._samples = None if self._samples is None or samples is None else self._samples + samples
        self._tokens = None if self._tokens is None or tokens is None else self._tokens + tokens

    def taken(self) -> tuple[int | None, int | None]:
        """Return the samples and tokens since this was last asked, None if there was no batch."""
        found = (self._samples, self._tokens) if self.batches else (None, None)
        self.batches, self._samples, self._tokens = 0, 0, 0
        return found


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
