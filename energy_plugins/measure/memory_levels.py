"""The levels of memory of any device that a training may run on."""

from __future__ import annotations

import re

from energy_plugins.errors import DeviceError
from energy_plugins.measure.cpu_memory import cpu_memory
from energy_plugins.measure.devices import visible_gpus
from energy_plugins.measure.gpu_memory import gpu_memory
from energy_plugins.tune.memory_hierarchy import MemoryHierarchy


def memory_levels(device: object) -> MemoryHierarchy:
    """Return the levels of ``"cpu"``, ``"cuda"``, ``"cuda:1"``, a GPU's number as CUDA counts, or a `torch.device`.

    Raises:
        DeviceError: there is no such device.
    """
    match = re.fullmatch(r"(cpu|cuda)?:?(\d*)", str(device))
    kind, number = match.groups() if match else (None, "")
    if kind == "cpu":
        return cpu_memory()
    if kind is None and not number:
        raise DeviceError(f"{str(device)!r} is no device that is known here: give cpu, cuda, cuda:1 or a GPU's number")
    gpus, index = visible_gpus(), int(number or 0)
    if index >= len(gpus):
        raise DeviceError(f"{device} is not there: this process sees {len(gpus)} GPUs, numbered from 0")
    return gpu_memory(gpus[index])
