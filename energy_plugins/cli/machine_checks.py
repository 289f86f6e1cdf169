"""What the machine says without its GPU driver: CPU energy, clocks, namespaces, frameworks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from energy_plugins.cli.check import CPU, Check, Status

POWERCAP_VARIABLE = "ENERGY_POWERCAP_ROOT"

_FRAMEWORKS = ("torch", "lightning", "pytorch-lightning", "transformers", "accelerate", "optuna", "ray")
_FIRST_PID_NAMESPACE = 0xEFFFFFFC
"""PROC_PID_INIT_INO, the inode of the machine's own pid namespace (Linux, include/linux/proc_ns.h)."""
_WRITTEN_S = 1_767_225_600.0
"""The beginning of 2026: no wall clock that is right shows less."""


def machine_checks() -> Iterator[Check]:
    """Yield what there is to know without asking the GPU driver."""
    yield cpu_energy(Path(os.environ.get(POWERCAP_VARIABLE, "/sys/class/powercap")))
    yield _wall_clock()
    yield _processes()
    yield _frameworks()


def cpu_energy(root: Path) -> Check:
    """Look whether the energy counters of the CPU packages under ``root``, a powercap tree, may be read."""
    zones = sorted(root.glob("intel-rapl:*/energy_uj"))
    if not zones:
        why = f"there are no counters in {root}: a virtual machine, a container, or a CPU without RAPL"
        return Check(CPU, Status.MISSING, "no", why, "load the module intel_rapl_common, or measure on bare metal")
    readable = []
    for zone in zones:
        try:
            zone.read_text()
            readable.append(zone.with_name("name").read_text().strip())
        except PermissionError:
            remedy = f"run as root, or let this group read it: chgrp GROUP {zone}; chmod g+r {zone}"
            return Check(CPU, Status.MISSING, "no", f"{zone} is readable by root only", remedy)
        except OSError as error:
            return Check(CPU, Status.MISSING, "no", f"{zone}: {error.strerror}", "see dmesg")
    return Check(CPU, Status.OK, ", ".join(readable))


def has_capability(number: int, status: Path = Path("/proc/self/status")) -> bool:
    """Return whether this process has a capability in force; False where the system does not say."""
    return bool(int(_status_field(status, "CapEff") or "0", 16) >> number & 1)


def in_pid_namespace() -> bool:
    """Return whether this process sees only a part of the machine's processes, as in most containers."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino != _FIRST_PID_NAMESPACE
    except OSError:
        return True  # no /proc: nothing is seen at all


def _status_field(status: Path, name: str) -> str | None:
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(f"{name}:")), None)


def _wall_clock() -> Check:
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    if time.time() > _WRITTEN_S:
        return Check("wall clock", Status.OK, now)
    return Check(
        "wall clock", Status.WARNING, now, "it lies in the past: reports will carry a wrong date", "set the clock"
    )


def _processes() -> Check:
    if not in_pid_namespace():
        return Check("processes", Status.OK, "those of the whole machine are seen")
    why = "other users of a GPU may be hidden: a report then says that they are unknown, not that there are none"
    return Check("processes", Status.WARNING, "a container's own", why, "docker run --pid=host shows them")


def _frameworks() -> Check:
    found = [f"{name} {number}" for name in _FRAMEWORKS if (number := _version(name))]
    return Check("frameworks", Status.OK, ", ".join(found) or "none; EnergyMeter measures any loop without one")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
