"""The CPU lane of a run: joules of the machine's CPU packages and of its DRAM."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from energy_plugins import _native
from energy_plugins.measure.cpu_counter import CounterTrack
from energy_plugins.measure.cpu_estimate import BusyCores, CpuEstimate
from energy_plugins.measure.drivers import Drivers
from energy_plugins.measure.rapl import CpuSensor, Found, Part, powercap_counters
from energy_plugins.measure.rapl_perf import perf_counters
from energy_plugins.measure.report_parts import CpuDomain

RANK_VARIABLE = "LOCAL_RANK"
_OTHER_RANK = "CPU energy is measured by local rank 0"
_FIELDS = {Part.CPU: "cpu_j", Part.DRAM: "dram_j"}


@dataclass(frozen=True)
class CpuEnergy:
    """Joules of a window, as a report has them; ``missing`` says why for each that is None."""

    cpu_j: float | None = None
    dram_j: float | None = None
    domains: tuple[CpuDomain, ...] = ()
    estimate_j: float | None = None
    estimate_label: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CpuPlan:
    """The counters to read, and why a part of the machine has none."""

    sensors: tuple[CpuSensor, ...]
    reasons: Mapping[Part, str]
    ours: bool = True
    """Whether this process is the one of its node that answers for the CPU."""


def plan_cpu(drivers: Drivers) -> CpuPlan:
    """Open the counters of each part: those of the powercap tree, else perf events where these are allowed.

    The counters are the whole machine's: only the first process of a node reads them (``LOCAL_RANK``).
    """
    if os.environ.get(RANK_VARIABLE, "0").strip() not in {"", "0"}:
        return CpuPlan((), dict.fromkeys(Part, _OTHER_RANK), ours=False)
    sensors: list[CpuSensor] = []
    reasons = {}
    for part in Part:
        found = _find(drivers, part)
        sensors += found.sensors
        if not found.sensors:
            reasons[part] = found.reason
    return CpuPlan(tuple(sensors), reasons)


def _find(drivers: Drivers, part: Part) -> Found:
    files = powercap_counters(Path(drivers.powercap), part)
    if files.sensors:
        return files
    events = perf_counters(Path(drivers.event_sources), part)
    if events.sensors:
        return events
    return Found(reason=f"{files.reason}; as a perf event: {events.reason}" if events.reason else files.reason)


class CpuMeter:
    """Collects the readings of a plan's counters from ``start_ns`` on; estimates, if asked to, where there are none."""

    def __init__(self, plan: CpuPlan, start_ns: int, estimate: CpuEstimate | None = None) -> None:
        self._sensors = plan.sensors
        self._missing = {_FIELDS[part]: reason for part, reason in plan.reasons.items()}
        self._start_ns = start_ns
        self._tracks = [CounterTrack(sensor.scale, start_ns) for sensor in plan.sensors]
        self._busy: BusyCores | None = None
        if estimate is None:
            self._missing["cpu_estimate_j"] = "no estimate was asked for"
        elif Part.CPU not in plan.reasons:
            self._missing["cpu_estimate_j"] = "cpu_j is measured"
        elif not plan.ours:
            self._missing["cpu_estimate_j"] = _OTHER_RANK
        else:
            self._busy = BusyCores(estimate, start_ns)

    @property
    def faults(self) -> tuple[str, ...]:
        """What could not be measured, each once."""
        of_counters = (
            f"{sensor.name}: {text}"
            for sensor, track in zip(self._sensors, self._tracks, strict=True)
            for text in track.faults
        )
        return (*of_counters, *(self._busy.faults if self._busy else ()))

    def take(self, sampler: _native.Sampler | None) -> None:
        """Drain the sampler's readings."""
        if sampler is not None:
            for row, track in enumerate(self._tracks):
                track.take(sampler.cpu(row))

    def look(self, now_ns: int) -> None:
        """Let an estimate reach up to now."""
        if self._busy is not None:
            self._busy.look(now_ns)

    def forget(self, until_ns: int) -> None:
        """Keep but sums of what lies before ``until_ns``: no window will end earlier."""
        for track in self._tracks:
            track.forget(until_ns)

    def energy(self, end_ns: int) -> CpuEnergy:
        """Return the joules from the start to ``end_ns``."""
        domains = []
        for sensor, track in zip(self._sensors, self._tracks, strict=True):
            joules, coverage = track.energy_j(end_ns)
            domains.append(
                CpuDomain(
                    name=sensor.name, kind=sensor.part.value, source=sensor.source, energy_j=joules, coverage=coverage
                )
            )
        missing = dict(self._missing)
        sums = {part: _sum(domains, part, missing) for part in Part}
        estimate_j, label = None, ""
        if self._busy is not None:
            estimate_j, label = self._busy.estimate((end_ns - self._start_ns) * 1e-9)
            if estimate_j is None:
                missing["cpu_estimate_j"], label = label, ""
        return CpuEnergy(sums[Part.CPU], sums[Part.DRAM], tuple(domains), estimate_j, label, missing)


def _sum(domains: Sequence[CpuDomain], part: Part, missing: dict[str, str]) -> float | None:
    """Add up the domains of ``part``; where one of them is not known, the sum is not, and ``missing`` says so."""
    own = [domain for domain in domains if domain.kind == part.value]
    unknown = [domain.name for domain in own if domain.energy_j is None]
    if unknown:
        missing[_FIELDS[part]] = f"no two readings of {', '.join(unknown)} in the window"
    if unknown or not own:
        return None
    return sum(domain.energy_j for domain in own if domain.energy_j is not None)
