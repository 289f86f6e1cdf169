"""Which energy counters of the CPU (RAPL) the kernel shows as files, and which of them add up to the machine.

Domains contain each other: ``psys`` (the whole platform) holds the packages, and ``package-N`` holds ``core`` and
``uncore``; ``dram`` is beside its package. So only packages are added up to the CPU's energy, and only ``dram`` to the
memory's. ``intel-rapl-mmio`` shows packages of ``intel-rapl`` a second time. AMD's packages are under ``intel-rapl``,
too. (Documentation/power/powercap/powercap.rst and drivers/powercap/intel_rapl_common.c of Linux.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from energy_plugins import _native
from energy_plugins.measure.cpu_counter import Scale

_ZONE = re.compile(r"(?P<control>[^:]*rapl[^:]*)(:\d+)+")
_REMEDY = (
    "run as root, make the file readable (chmod o+r or a udev rule), or allow perf events "
    "(sysctl kernel.perf_event_paranoid=0, or CAP_PERFMON)"
)


class Part(Enum):
    """What the joules of a counter belong to; a report calls it by the value."""

    CPU = "cpu"
    DRAM = "dram"


@dataclass(frozen=True)
class CpuSensor:
    """One counter, open; its joules are in no other counter that is read."""

    name: str
    part: Part
    source: str
    """Where it is read."""
    scale: Scale
    counter: _native.RaplCounter


@dataclass(frozen=True)
class Found:
    """The counters that together measure one part of the machine, or why it cannot be measured."""

    sensors: tuple[CpuSensor, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class _Zone:
    folder: Path
    control: str
    name: str

    @property
    def part(self) -> Part | None:
        if self.name.startswith("package"):
            return Part.CPU
        return Part.DRAM if self.name.startswith("dram") else None


def powercap_counters(root: Path, part: Part) -> Found:
    """Open the counters of ``part`` in the powercap tree at ``root``.

    All or none: the sum of some packages would pass for that of all.
    """
    zones = _zones(root)
    wanted = [zone for zone in zones if zone.part is part]
    if nameless := next((zone for zone in zones if not zone.name), None):
        return Found(reason=f"{nameless.folder / 'name'} cannot be read: it may be one of those to be added up")
    if not wanted:
        return Found(reason=_nothing_because(root, zones, part))
    chosen = min((zone.control for zone in wanted), key=lambda control: ("mmio" in control, control))
    try:
        return Found(tuple(_opened(zone, part, zones) for zone in wanted if zone.control == chosen))
    except PermissionError as error:
        return Found(reason=f"{error.strerror}: {_REMEDY}")
    except OSError as error:
        return Found(reason=str(error.strerror))


def _zones(root: Path) -> list[_Zone]:
    """Return every zone once; the tree has each under its parent, and a link to it at the root."""
    folders = {folder.resolve().name: folder for folder in sorted(_folders(root), key=lambda folder: folder.name)}
    zones = []
    for identity, folder in folders.items():
        match = _ZONE.fullmatch(identity)
        name = _text(folder / "name")
        if match:
            zones.append(_Zone(folder, match["control"], name))
    return zones


def _folders(root: Path) -> Iterator[Path]:
    try:
        inside = [entry for entry in root.iterdir() if "rapl" in entry.name and entry.is_dir()]
    except OSError:
        return
    for folder in inside:
        yield folder
        if not folder.is_symlink():
            yield from _folders(folder)


def _opened(zone: _Zone, part: Part, zones: list[_Zone]) -> CpuSensor:
    path = zone.folder / "energy_uj"
    counter = _native.RaplCounter(str(path))
    largest = _text(zone.folder / "max_energy_range_uj")
    scale = Scale.microjoules(int(largest) if largest.isdecimal() else None)
    parent = zone.folder.resolve().name.rpartition(":")[0]
    above = next((other.name for other in zones if other.folder.resolve().name == parent), "")
    return CpuSensor(f"{above} {zone.name}".lstrip(), part, str(path), scale, counter)


def _nothing_because(root: Path, zones: list[_Zone], part: Part) -> str:
    if any(zone.part is not None for zone in zones):
        return f"no domain under {root} is the energy of {'DRAM' if part is Part.DRAM else 'a package'} alone"
    if any(zone.name.startswith("psys") for zone in zones):
        return f"{root} has only psys, the energy of the whole platform"
    try:
        hidden = next((entry for entry in root.iterdir() if "rapl" in entry.name and not entry.exists()), None)
    except OSError:
        hidden = None
    if hidden is not None:
        return (
            f"{hidden} leads nowhere: this container hides /sys/devices/virtual/powercap, as Docker does by default "
            "(docker run --security-opt systempaths=unconfined shows it)"
        )
    return (
        f"no energy counter of a CPU under {root}: a virtual machine, a container without it, a CPU without RAPL, or "
        "a kernel whose module is not loaded (modprobe intel_rapl_msr)"
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
