"""The caches and the memory of a CPU, as far as this process may use them."""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from energy_plugins.measure.container import cpu_limit, memory_limit_bytes
from energy_plugins.measure.quantity import binary
from energy_plugins.tune.memory_hierarchy import Level, MemoryHierarchy

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class _Cache:
    level: int
    size_bytes: int
    shared_by: frozenset[int]


def cpu_memory(
    sys: Path = Path("/sys"), proc: Path = Path("/proc"), allowed: frozenset[int] | None = None
) -> MemoryHierarchy:
    """Return what the CPUs that this process may run on have, its cgroups' limits considered.

    A level's size is the sum of its pieces: those that belong to allowed CPUs, and no more of them than CPUs may work
    at once. Others may use a shared piece, too: that is not known here.

    Args:
        sys: where sysfs is (Documentation/ABI/testing/sysfs-devices-system-cpu of Linux).
        proc: where /proc is.
        allowed: the numbers of the CPUs that the process may run on; None: asked of the kernel.
    """
    cpus = frozenset(os.sched_getaffinity(0)) if allowed is None else allowed
    quota = cpu_limit(sys, proc)
    working = len(cpus) if quota is None else min(len(cpus), math.ceil(quota))
    notes = []
    if quota is not None and working < len(cpus):
        notes.append(f"caches are those of {working} of {len(cpus)} CPUs: the cgroup allows the time of {quota:g}")
    caches = {cache for cpu in cpus for cache in _caches(sys / f"devices/system/cpu/cpu{cpu}/cache")}
    levels = [
        _as_level(f"L{number}", [cache for cache in caches if cache.level == number], working)
        for number in sorted({cache.level for cache in caches})
    ]
    if not levels:
        notes.append(f"no caches are shown in {sys}/devices/system/cpu: a virtual machine may hide them")
    memory, why = _memory(sys, proc)
    notes.append(why)
    if memory:
        levels.append(Level("DRAM", memory, sharers=max(len(cpus), 1)))
    return MemoryHierarchy(_name(proc), tuple(levels), tuple(filter(None, notes)))


def _as_level(name: str, caches: list[_Cache], working: int) -> Level:
    largest_first = sorted((cache.size_bytes for cache in caches), reverse=True)
    return Level(name, sum(largest_first[:working]), sharers=max(len(cache.shared_by) for cache in caches))


def _caches(folder: Path) -> Iterator[_Cache]:
    """Yield a CPU's caches of data."""
    for index in folder.glob("index*"):
        try:
            kind, level, size, sharers = (
                (index / name).read_text(encoding="ascii").strip()
                for name in ("type", "level", "size", "shared_cpu_list")
            )
            found = _Cache(int(level), _bytes(size), _cpus(sharers))
        except (OSError, ValueError, KeyError):
            continue
        if kind != "Instruction" and found.size_bytes:
            yield found


def _bytes(text: str) -> int:
    """Return the number of bytes in a text such as "48K". Raises ValueError or KeyError."""
    return int(text.rstrip("KMG")) * _UNITS[text.lstrip("0123456789")]


def _cpus(text: str) -> frozenset[int]:
    """Return the numbers in a list such as "0-3,8"."""
    ranges = [part.partition("-") for part in text.split(",")]
    return frozenset(cpu for first, _, last in ranges for cpu in range(int(first), int(last or first) + 1))


def _memory(sys: Path, proc: Path) -> tuple[int | None, str]:
    """Return how many bytes of memory may be used, and a note where that is not all there is."""
    path = proc / "meminfo"
    try:
        found = re.search(r"^MemTotal:\s+(\d+) kB$", path.read_text(encoding="ascii"), re.MULTILINE)
    except OSError as error:
        return None, f"the memory's size is not known: {error}"
    if found is None:
        return None, f"the memory's size is not known: {path} does not tell MemTotal"
    machine, limit = int(found[1]) << 10, memory_limit_bytes(sys, proc)
    if limit is None or limit >= machine:
        return machine, ""
    return limit, f"the cgroup allows {binary(limit)} of the machine's {binary(machine)}"


def _name(proc: Path) -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", (proc / "cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else f"CPU ({platform.machine()})"
