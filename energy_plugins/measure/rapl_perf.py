"""The energy counters of the CPU as perf events, for users to whom sysfs is closed.

``/sys/bus/event_source/devices/power`` says how they are opened: the type of the events, a config and a scale of each,
and one CPU of each package. The kernel unwraps them. ``energy-cores``, ``energy-gpu`` and ``energy-psys`` overlap with
``energy-pkg`` and are not read. (arch/x86/events/rapl.c of Linux)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from energy_plugins import _native
from energy_plugins.measure.cpu_counter import Scale
from energy_plugins.measure.rapl import CpuSensor, Found, Part

_EVENTS = {Part.CPU: "energy-pkg", Part.DRAM: "energy-ram"}
_CONFIG = re.compile(r"event=(0x[0-9a-f]+|\d+)")


def perf_counters(root: Path, part: Part) -> Found:
    """Open the events of ``part``, one on each package, as the folder ``root`` of event sources describes them.

    Where there are no such events at all, there is no reason to give either.
    """
    source, event = root / "power", _EVENTS[part]
    try:
        kind_text = _text(source / "type")
    except OSError:
        return Found()
    try:
        kind = int(kind_text)
        config = _CONFIG.search(_text(source / "events" / event))
        if config is None:
            return Found(reason=f"{source / 'events' / event} names no event")
        joules = Fraction(_text(source / "events" / f"{event}.scale"))
        if joules <= 0:
            return Found(reason=f"{source / 'events' / event}.scale says that a count is worth nothing")
        cpus = tuple(_cpus(_text(source / "cpumask")))
    except (OSError, ValueError, ArithmeticError) as error:
        return Found(reason=str(error))
    try:
        return Found(
            tuple(
                CpuSensor(
                    name=f"{event} of CPU {cpu}",
                    part=part,
                    source=f"perf {event}",
                    scale=Scale(joules),
                    counter=_native.RaplCounter.perf(kind, int(config[1], 0), cpu),
                )
                for cpu in cpus
            )
        )
    except OSError as error:
        return Found(reason=str(error.strerror))


def _text(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()


def _cpus(text: str) -> Iterator[int]:
    """Yield the numbers of a kernel's list of CPUs, such as ``0,28-29``; ValueError if it is none."""
    for piece in text.split(","):
        first, _, last = piece.partition("-")
        yield from range(int(first), int(last or first) + 1)
