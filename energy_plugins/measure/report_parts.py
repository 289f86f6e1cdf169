"""The parts of a `Report`: small values, each read from a section of ``report.json``, and schemas of its columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from energy_plugins.measure.columns import Schema
from energy_plugins.measure.json_section import Section

STEP_COLUMNS: Schema = {
    "index": "i8",
    "start_s": "f8",
    "end_s": "f8",
    "energy_j": "f8",
    "error_bound_j": "f8",
    "coverage": "f8",
    "samples": "i8",
    "tokens": "i8",
    "data_wait_j": "f8",
    "stall_j": "f8",
}
SPAN_COLUMNS: Schema = {
    "kind": "i2",
    "start_s": "f8",
    "end_s": "f8",
    "energy_j": "f8",
    "error_bound_j": "f8",
    "coverage": "f8",
}
POWER_COLUMNS: Schema = {"t_s": "f8", "power_w": "f8"}


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the run did; None where nobody said."""

    steps: int = 0
    samples: int | None = None
    tokens: int | None = None

    @classmethod
    def read(cls, section: Section) -> Work:
        """Read it from JSON; raises ReportError."""
        return cls(
            steps=section.count("steps"),
            samples=section.maybe_count("samples"),
            tokens=section.maybe_count("tokens"),
        )


@dataclass(frozen=True, kw_only=True)
class Observer:
    """What measuring cost, measured in this very run."""

    thread_cpu_s: float = 0.0
    """CPU time of the sampler's thread."""
    driver_call_s: float = 0.0
    """The part of it spent inside driver calls, in elapsed time."""
    mark_s: float = 0.0
    """Time the training thread spent in marks."""
    collect_s: float = 0.0
    """CPU time spent on turning samples into joules."""
    dropped: int = 0
    """Samples and marks lost because a ring was full."""
    marks: int = 0
    events: int = 0
    """Marks that also recorded an event on the GPU."""

    @classmethod
    def read(cls, section: Section) -> Observer:
        """Read it from JSON; raises ReportError."""
        return cls(
            thread_cpu_s=section.number("thread_cpu_s"),
            driver_call_s=section.number("driver_call_s"),
            mark_s=section.number("mark_s"),
            collect_s=section.number("collect_s"),
            dropped=section.count("dropped"),
            marks=section.count("marks"),
            events=section.count("events"),
        )


@dataclass(frozen=True, kw_only=True)
class DeviceInfo:
    """A GPU that was measured, the sensors it has, and why it lacks others."""

    uuid: str
    name: str
    index: int
    driver: str
    sensors: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, section: Section) -> DeviceInfo:
        """Read it from JSON; raises ReportError."""
        return cls(
            uuid=section.text("uuid"),
            name=section.text("name"),
            index=section.count("index"),
            driver=section.text("driver"),
            sensors=section.texts("sensors"),
            reasons=section.text_by_name("reasons"),
        )


@dataclass(frozen=True, kw_only=True)
class CpuDomain:
    """One counter of the CPU or of DRAM: its joules, None if nothing is known of them; of all processes."""

    name: str
    kind: str
    """``cpu`` or ``dram``."""
    source: str
    """Where it was read."""
    energy_j: float | None
    coverage: float

    @classmethod
    def read(cls, section: Section) -> CpuDomain:
        """Read it from JSON; raises ReportError."""
        return cls(
            name=section.text("name"),
            kind=section.text("kind"),
            source=section.text("source"),
            energy_j=section.maybe_number("energy_j"),
            coverage=section.number("coverage"),
        )


@dataclass(frozen=True, kw_only=True)
class KindTotal:
    """All spans of one kind together; the kind ``unattributed`` is what no span covered."""

    kind: str
    count: int
    duration_s: float
    energy_j: float | None
    error_bound_j: float | None
    coverage: float

    @classmethod
    def read(cls, section: Section) -> KindTotal:
        """Read it from JSON; raises ReportError."""
        return cls(
            kind=section.text("kind"),
            count=section.count("count"),
            duration_s=section.number("duration_s"),
            energy_j=section.maybe_number("energy_j"),
            error_bound_j=section.maybe_number("error_bound_j"),
            coverage=section.number("coverage"),
        )
