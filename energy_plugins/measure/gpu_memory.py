"""The caches and the memory of a GPU, from CUDA's attributes and NVML."""

from __future__ import annotations

from collections.abc import Mapping

import pynvml

from energy_plugins.measure.cuda_attributes import attributes_of
from energy_plugins.measure.devices import Gpu, open_nvml, shut_down_after
from energy_plugins.measure.drivers import current_drivers
from energy_plugins.tune.memory_hierarchy import Level, MemoryHierarchy

_L1_KIB = {
    (7, 0): 128,
    (7, 2): 128,
    (7, 5): 96,
    (8, 0): 192,
    (8, 6): 128,
    (8, 7): 192,
    (8, 9): 128,
    (9, 0): 256,
    (10, 0): 256,
    (10, 3): 256,
    (12, 0): 128,
}
"""L1 and shared memory together, of one multiprocessor, by compute capability: CUDA C++ Programming Guide, "Compute
Capabilities". The driver tells only the part of it that may be shared memory."""
_DATA_RATE = 2
"""Transfers in a cycle of the clock that the driver tells (double data rate): bandwidth = 2 x clock x bus width / 8
(NVIDIA, "How to Implement Performance Metrics in CUDA C/C++")."""
_WIDE_BUS_BITS = 1024
"""One stack of HBM has so many lines; cards with GDDR have at most 512."""


def gpu_memory(gpu: Gpu) -> MemoryHierarchy:
    """Return the levels of a GPU, or of a MIG slice; what cannot be told is left out, with a note."""
    levels, notes = [], []
    try:
        told = attributes_of(current_drivers().cuda, gpu.visible_uuid)
    except (OSError, AttributeError) as error:
        told = {}
        notes.append(f"caches are not known: {error}")
    if l1 := _l1(told):
        levels.append(l1)
    if told.get("l2_bytes"):
        levels.append(Level("L2", told["l2_bytes"], sharers=told.get("multiprocessors") or 1))
    try:
        levels.append(_memory(gpu, told))
    except (pynvml.NVMLError, OSError) as error:
        notes.append(f"the memory's size is not known: {error}")
    return MemoryHierarchy(gpu.name, tuple(levels), tuple(notes))


def _l1(told: Mapping[str, int]) -> Level | None:
    count = told.get("multiprocessors")
    kib = _L1_KIB.get((told.get("major", 0), told.get("minor", 0)))
    each = kib * 1024 if kib else told.get("shared_bytes")
    return Level("L1", count * each) if count and each else None


def _memory(gpu: Gpu, told: Mapping[str, int]) -> Level:
    open_nvml()
    with shut_down_after():
        handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.visible_uuid)
        size_bytes = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
        try:
            bits = int(pynvml.nvmlDeviceGetMemoryBusWidth(handle))
            clock_hz = pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_MEM) * 1e6
        except pynvml.NVMLError:  # of a slice, or by an older driver: CUDA may know
            bits, clock_hz = told.get("memory_bus_bits", 0), told.get("memory_clock_khz", 0) * 1e3
    bandwidth = _DATA_RATE * clock_hz * bits / 8 or None
    name = "memory" if not bits else "HBM" if bits >= _WIDE_BUS_BITS else "GDDR"
    return Level(name, size_bytes, bandwidth, sharers=told.get("multiprocessors") or 1)
