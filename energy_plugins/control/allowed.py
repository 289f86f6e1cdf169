"""Which power limits a sweep may try on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from energy_plugins.control.nvml import Nvml
from energy_plugins.errors import DeviceError
from energy_plugins.measure.devices import visible_gpus
from energy_plugins.measure.drivers import current_drivers

if TYPE_CHECKING:
    from energy_plugins.measure.devices import Gpu

STEP_W: Final = 10
"""Limits closer than that differ by less than runs do."""


def allowed_limits_w(gpu: Gpu | int = 0, step_w: int = STEP_W) -> range:
    """Return limits (W) from about the lowest that a GPU takes up to the one that it has now, which is among them.

    None is above that, for somebody may have set it on purpose.

    Args:
        gpu: one of `visible_gpus`, or its place among them.
        step_w: between two limits (W).

    Raises:
        DeviceError: there is no such GPU.
        NvmlError, LibraryError: the driver fails, or has no power limit for this GPU.
    """
    if not isinstance(gpu, int):
        chosen = gpu
    else:
        gpus = visible_gpus()
        if not 0 <= gpu < len(gpus):
            raise DeviceError(f"there is no GPU {gpu}: {len(gpus)} are visible here")
        chosen = gpus[gpu]
    with Nvml(current_drivers().nvml) as nvml:
        card = nvml.card(chosen.uuid)
        lowest_w, highest_w = card.range_w()
        highest_w = min(highest_w, card.limit_w())
    low, high = round(lowest_w), int(highest_w)
    return range(min(high - (high - low) // step_w * step_w, high), high + 1, step_w)
