"""What the machine says without its GPU driver: CPU energy, clocks, namespaces, frameworks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from energy_plugins.cli.check import CPU, Check, Status
from energy_plugins.measure.cpu import plan_cpu
from energy_plugins.measure.drivers import current_drivers
from energy_plugins.measure.neighbours import sees_all_processes
from energy_plugins.measure.rapl import Part

_FRAMEWORKS = ("torch", "lightning", "pytorch-lightning", "transformers", "accelerate", "optuna", "ray")
_WRITTEN_S = 1_767_225_600.0
"""The beginning of 2026: no wall clock that is right shows less."""


def machine_checks() -> Iterator[Check]:
    """Yield what there is to know without asking the GPU driver."""
    yield from cpu_checks()
    yield _wall_clock()
    yield _processes()
    yield _frameworks()


def cpu_checks() -> Iterator[Check]:
    """Say which energy counters of the CPU a meter reads, and why it has none for packages or for DRAM."""
    plan = plan_cpu(current_drivers())
    for part, name in ((Part.CPU, CPU), (Part.DRAM, "DRAM energy")):
        if part in plan.reasons:
            known = part is Part.DRAM and plan.reasons[part] == plan.reasons.get(Part.CPU)
            yield Check(name, Status.MISSING, "no", f"as for {CPU}" if known else plan.reasons[part])
            continue
        sensors = [sensor for sensor in plan.sensors if sensor.part is part]
        source = "a perf event" if sensors[0].source.startswith("perf ") else "powercap"
        yield Check(name, Status.OK, f"{', '.join(sensor.name for sensor in sensors)}, by {source}")


def _wall_clock() -> Check:
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    if time.time() > _WRITTEN_S:
        return Check("wall clock", Status.OK, now)
    return Check(
        "wall clock", Status.WARNING, now, "it lies in the past: reports will carry a wrong date", "set the clock"
    )


def _processes() -> Check:
    if sees_all_processes():
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
