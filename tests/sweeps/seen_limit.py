"""The power limit that a process sees."""

from __future__ import annotations

import os

import pynvml

from energy_plugins.measure.devices import open_nvml, shut_down_after


def limit_w() -> float:
    """Return the power limit of the first GPU that this process may use."""
    index = int((os.environ.get("CUDA_VISIBLE_DEVICES") or "0").split(",")[0])
    open_nvml()
    with shut_down_after():
        return float(pynvml.nvmlDeviceGetPowerManagementLimit(pynvml.nvmlDeviceGetHandleByIndex(index))) / 1e3
