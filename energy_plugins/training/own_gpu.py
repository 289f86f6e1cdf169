"""Which GPU a process trains on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from energy_plugins.errors import DeviceError
from energy_plugins.measure.devices import visible_gpus


def own_gpu(device: torch.device) -> Sequence[int | str] | None:
    """Return the GPU behind ``device`` by its UUID, as `EnergyMeter` takes it; None for a device that is no GPU."""
    if device.type != "cuda":
        return None
    own = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    # A slice of a GPU goes by a UUID of its own; what this process may see is then all there is to go by.
    try:
        return [own] if own in {gpu.uuid for gpu in visible_gpus() if gpu.mig is None} else None
    except DeviceError:
        return None  # the meter meets the same, and says so in the report
