"""What to do about calls of the NVIDIA driver that fail."""

from __future__ import annotations

import pynvml

from energy_plugins.cli.check import ASK_NVIDIA_SMI

_REMEDIES = {
    pynvml.NVML_ERROR_NOT_SUPPORTED: "nothing: this GPU has no such sensor",
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "update the driver: this one does not know the call",
    pynvml.NVML_ERROR_NO_PERMISSION: "run as root, or ask the administrator to allow it",
    pynvml.NVML_ERROR_GPU_IS_LOST: "reset the GPU (nvidia-smi -r) or reboot; dmesg | grep Xid says what happened",
}


def remedy_for(error: pynvml.NVMLError) -> str:
    """Return what to do about a call that failed."""
    return _REMEDIES.get(error.value, ASK_NVIDIA_SMI)


def has_remedy(error: pynvml.NVMLError) -> bool:
    """Return whether the user can do something about it; what a GPU does not have is as it is."""
    return bool(error.value != pynvml.NVML_ERROR_NOT_SUPPORTED)
