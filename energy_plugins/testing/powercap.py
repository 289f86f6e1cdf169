"""Trees of energy counters as Linux shows them in ``/sys/class/powercap``, made of files, with known true energy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

_REGISTER = 2**32
_DRAM_NJ = 15300
"""The unit of DRAM on Intel servers, whatever that of the packages (drivers/powercap/intel_rapl_common.c)."""


@dataclass(frozen=True)
class Zone:
    """One domain: a 32-bit register that counts units of ``unit_nj`` nanojoules and begins at ``register``."""

    folder: str
    """``intel-rapl:0:1``: what comes before the last colon is the folder it lies in."""
    name: str
    power_w: float
    unit_nj: int | Fraction = 61035
    register: int = 0


def intel(sockets: int, *, psys: bool = False, mmio: bool = False, dram: bool = True) -> tuple[Zone, ...]:
    """Return the zones of an Intel machine; those that overlap draw what they contain."""
    zones = []
    for socket in range(sockets):
        package = f"intel-rapl:{socket}"
        zones.append(Zone(package, f"package-{socket}", 270.0 - 7 * socket, register=4_000_000_000))
        zones.append(Zone(f"{package}:0", "core", 90.0))
        zones.append(Zone(f"{package}:1", "uncore", 12.0))
        if dram:
            zones.append(Zone(f"{package}:2", "dram", 21.0 + socket, _DRAM_NJ, register=_REGISTER - 1))
    if psys:
        zones.append(Zone(f"intel-rapl:{sockets}", "psys", 270.0 * sockets + 60))
    if mmio:
        zones += [
            replace(zone, folder=zone.folder.replace("intel-rapl", "intel-rapl-mmio"))
            for zone in zones
            if zone.name.startswith("package")
        ]
    return tuple(zones)


def amd(sockets: int) -> tuple[Zone, ...]:
    """Return the zones of an AMD machine: packages and cores in units of 15.3 uJ, so a package wraps at 65 kJ."""
    packages = [Zone(f"intel-rapl:{n}", f"package-{n}", 280.0 - 9 * n, 15258, 4_200_000_000) for n in range(sockets)]
    return tuple(packages + [Zone(f"{zone.folder}:0", "core", 55.0, 15258) for zone in packages])


def multi_die(packages: int, dies: int) -> tuple[Zone, ...]:
    """Return the zones of a machine each of whose packages has several dies with counters of their own."""
    names = [f"package-{package}-die-{die}" for package in range(packages) for die in range(dies)]
    return tuple(Zone(f"intel-rapl:{n}", name, 100.0 + n) for n, name in enumerate(names))


class PowercapTree:
    """A tree under ``machine``; its ``root`` stands for ``/sys/class/powercap``, with links as the kernel's has."""

    def __init__(self, machine: Path, zones: Sequence[Zone]) -> None:
        self.zones = tuple(zones)
        self.root = machine / "class" / "powercap"
        self._devices = machine / "devices" / "virtual" / "powercap"
        self._spent_nj = [Fraction(0) for _ in zones]
        self.root.mkdir(parents=True)
        for zone in zones:
            self._make(zone)
        self.spend(0.0)

    def folder(self, zone: Zone) -> Path:
        """Return where a zone's files are."""
        control, *numbers = zone.folder.split(":")
        parts = [":".join([control, *numbers[: count + 1]]) for count in range(len(numbers))]
        return self._devices.joinpath(control, *parts)

    def spend(self, seconds: float, share: float = 1.0) -> None:
        """Let every zone draw ``share`` of its power for ``seconds``, and its counter follow in whole units."""
        for row, zone in enumerate(self.zones):
            self._spent_nj[row] += Fraction(zone.power_w * share) * Fraction(seconds) * 10**9
            units = (zone.register + self._units(row)) % _REGISTER
            # In one piece and as long as ever: a reader beside this never meets a part of an older text.
            with (self.folder(zone) / "energy_uj").open("r+b", buffering=0) as file:
                file.write(f"{units * zone.unit_nj // 1000:020d}\n".encode())

    def true_j(self) -> dict[str, float]:
        """Return what each zone, by the name of its folder, has counted since the tree was made."""
        return {
            zone.folder: float(Fraction(self._units(row) * zone.unit_nj, 10**9)) for row, zone in enumerate(self.zones)
        }

    def wraps(self) -> int:
        """Return how often registers of packages and DRAM of ``intel-rapl`` have begun again."""
        return sum(
            (zone.register + self._units(row)) // _REGISTER
            for row, zone in enumerate(self.zones)
            if zone.name.startswith(("package", "dram")) and zone.folder.startswith("intel-rapl:")
        )

    def _units(self, row: int) -> int:
        return int(self._spent_nj[row] // self.zones[row].unit_nj)

    def _make(self, zone: Zone) -> None:
        folder = self.folder(zone)
        folder.mkdir(parents=True)
        largest_uj = (_REGISTER - 1) * zone.unit_nj // 1000
        for name, text in {"name": zone.name, "max_energy_range_uj": largest_uj, "enabled": 1, "energy_uj": 0}.items():
            (folder / name).write_text(f"{text}\n")
        (folder / "subsystem").symlink_to(self.root)
        (folder / "device").symlink_to(folder.parent)
        control = folder.relative_to(self._devices).parts[0]
        for target in (self._devices / control, folder):
            link = self.root / target.name
            if not link.is_symlink():
                link.symlink_to(os.path.relpath(target, self.root))
