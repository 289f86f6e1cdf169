"""What the loss of a batch may be divided by, counted for each sample: elements that are not ignored and no padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from energy_plugins.training.micro_batch.batch_tree import tensors

_IGNORED = 255
"""Beside all negative numbers: what loaders of segmentation masks write where nothing is known (Pascal VOC's)."""
_LONG = 4096
"""Numbers of a sample in floating point beyond which they are data, and neither weights nor a mask. Ours."""
_MANY = 1 << 20
"""The same of a batch. Ours: counting the 65,536 x 1,024 inputs of a perceptron took longer on an H200 than a step."""
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class SampleCounts:
    """The counts of a few batches, in the order of their samples.

    On a GPU they are counted there and copied while the host goes on; `spreads` waits for them.

    Args:
        batches: as they came.
    """

    def __init__(self, batches: Sequence[object]) -> None:
        counted = [_counted(batch) for batch in batches]
        known = [rows for rows in counted if rows is not None]
        self._rows: torch.Tensor | None = None
        """A row for each sample; None if there is nothing to count, or batches have other tensors than others."""
        self._copied: torch.cuda.Event | None = None
        if len(known) == len(counted) and len({(rows.shape[1], rows.device) for rows in known}) == 1:
            self._rows = torch.cat(known)
        if self._rows is not None and self._rows.is_cuda:
            here = torch.empty(self._rows.shape, dtype=self._rows.dtype, pin_memory=True)
            self._copied, stream = torch.cuda.Event(), torch.cuda.current_stream(self._rows.device)
            self._rows = here.copy_(self._rows, non_blocking=True)
            self._copied.record(stream)

    @property
    def is_here(self) -> bool:
        """Whether nothing need be waited for."""
        return self._copied is None

    def spreads(self, parts: Sequence[int]) -> list[float]:
        """Return how unequal parts of so many samples are: for each count the range of its means, by the largest."""
        if self._rows is None:
            return []
        if self._copied is not None:
            self._copied.synchronize()
        means = torch.stack([part.double().mean(0) for part in self._rows.cpu().split(list(parts))])
        high, low = means.max(0).values, means.min(0).values
        return torch.where(high > 0, (high - low) / high, 0.0).tolist()


def _counted(batch: object) -> torch.Tensor | None:
    """Return a row for each sample, on the GPU if any tensor is there; None if nothing can be counted."""
    columns = [column for tensor in tensors(batch) for column in _of(tensor.detach())]
    if not columns:
        return None
    device = next((one.device for one in columns if one.is_cuda), columns[0].device)  # else this would wait for the GPU
    return torch.stack([one.to(device, non_blocking=device.type == "cuda") for one in columns], 1)


def _of(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return what may be counted of a tensor, for each sample: none if it is of another kind."""
    rows = tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None]
    if not rows.numel():
        return []
    if tensor.dtype in _INTEGERS:
        found = [(rows >= 0) & (rows != _IGNORED), rows != 0]
        found += [rows != rows[:, -1:]] if rows.shape[1] > 1 else []  # sequences may be padded with anything
        return [one.sum(1, dtype=torch.float32) for one in found]
    if tensor.dtype is torch.bool:
        return [rows.sum(1, dtype=torch.float32)]
    if tensor.dtype in _FLOATS and rows.shape[1] <= _LONG and rows.numel() <= _MANY:
        found = [rows.isfinite(), rows != 0, rows.float().nan_to_num(0.0, 0.0, 0.0).abs()]
        return [one.sum(1, dtype=torch.float32) for one in found]
    return []
