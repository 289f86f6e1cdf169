"""The parts of a `Report`: small values, each read from a section of ``report.json``, and schemas of its columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Self

from energy_plugins.measure.columns import Schema
from energy_plugins.measure.json_section import Section, read_fields

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
STATE_COLUMNS: Schema = {
    "t_s": "f8",
    "sm_clock_mhz": "f8",
    "temperature_c": "f8",
    "enforced_limit_w": "f8",
    "requested_limit_w": "f8",
    "utilisation": "f8",
    "clock_reasons": "i8",
}
ACTIVITY_COLUMNS: Schema = {
    "start_s": "f8",
    "end_s": "f8",
    "sm": "f8",
    "occupancy": "f8",
    "tensor": "f8",
    "dram": "f8",
    "nvlink_rx_bytes_per_s": "f8",
    "nvlink_tx_bytes_per_s": "f8",
}


@dataclass(frozen=True)
class Part:
    """A part of a report: a dataclass that is a section of ``report.json``, its fields the keys."""

    @classmethod
    def read(cls, section: Section) -> Self:
        """Read it from JSON; raises ReportError."""
        return cls(**read_fields(cls, section))


@dataclass(frozen=True, kw_only=True)
class Work(Part):
    """What the run did; None where nobody said."""

    steps: int = 0
    samples: int | None = None
    tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Observer(Part):
    """What measuring cost, measured in this very run."""

    thread_cpu_s: float = 0.0
    """CPU time of the sampler's thread."""
    driver_call_s: float = 0.0
    """The part of it spent inside driver calls, in elapsed time."""
    mark_s: float = 0.0
    """Time the training thread spent in marks."""
    collect_s: float = 0.0
    """CPU time spent on turning samples into joules, on looking for other processes on the GPUs, and on the ledger."""
    dropped: int = 0
    """Samples and marks lost because a ring was full."""
    marks: int = 0
    events: int = 0
    """Marks that also recorded an event on the GPU."""
    ranks_s: float = 0.0
    """CPU time spent on telling other ranks, and on merging what they told."""


@dataclass(frozen=True, kw_only=True)
class ProcessInfo(Part):
    """A process on this node."""

    pid: int
    name: str


class Company(Enum):
    """Whether others computed on a GPU while it was measured."""

    NONE = "none"
    SOME = "some"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Others(Part):
    """Who else computed on a GPU while it was measured, whose joules are then in its numbers."""

    company: Company = Company.UNKNOWN
    processes: tuple[ProcessInfo, ...] = ()
    """Those seen, if there were some."""
    reason: str = "nobody looked"
    """Why it is not known."""

    @classmethod
    def read(cls, section: Section) -> Self:
        """Read it from JSON; raises ReportError."""
        return cls(
            **read_fields(cls, section, "company", "processes"),
            company=section.one_of("company", Company),
            processes=tuple(ProcessInfo.read(process) for process in section.sections("processes")),
        )


@dataclass(frozen=True, kw_only=True)
class DeviceInfo(Part):
    """A GPU that was measured, the sensors it has, and why it lacks others."""

    uuid: str
    name: str
    index: int
    driver: str
    sensors: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    others: Others = field(default_factory=Others)
    idle_w: float | None = None
    """Power of this GPU when idle, from the baseline that was remembered; `Report.missing` says why there is none."""
    idle_measured: str = ""
    """When that baseline was measured: wall time in UTC, ISO 8601."""

    @classmethod
    def read(cls, section: Section) -> Self:
        """Read it from JSON, which may lack what earlier versions did not know; raises ReportError."""
        section = section.with_defaults({"idle_w": None, "idle_measured": ""})
        return cls(
            **read_fields(cls, section, "others"),
            others=Others.read(section.section("others")) if section.has("others") else Others(),
        )


@dataclass(frozen=True, kw_only=True)
class CpuDomain(Part):
    """One counter of the CPU or of DRAM: its joules, None if nothing is known of them; of all processes."""

    name: str
    kind: str
    """``cpu`` or ``dram``."""
    source: str
    """Where it was read."""
    energy_j: float | None
    coverage: float


@dataclass(frozen=True, kw_only=True)
class KindTotal(Part):
    """All spans of one kind together; the kind ``unattributed`` is what no span covered."""

    kind: str
    count: int
    duration_s: float
    energy_j: float | None
    error_bound_j: float | None
    coverage: float


@dataclass(frozen=True, kw_only=True)
class GpuState(Part):
    """What a GPU was doing while it drew its power, from a reading a second; None where the driver does not say."""

    uuid: str
    readings: int
    sm_clock_mhz: float | None
    """Mean."""
    max_temperature_c: float | None
    utilisation: float | None
    """Mean share of time in which any kernel ran, however small."""
    min_limit_w: float | None
    max_limit_w: float | None
    """Range of the power limit in force."""
    requested_limit_w: float | None
    """Mean of the limit that was asked for; what is in force may be lower."""
    default_limit_w: float | None
    throttled: float | None
    """Share of readings in which the clocks were held down, by more than having nothing to do or by user's choice."""
    reasons: Mapping[str, float] = field(default_factory=dict)
    """Share of readings by the reason that the driver gave for its clocks (nvml.h, nvmlClocksEventReasons)."""


@dataclass(frozen=True, kw_only=True)
class KindActivity(Part):
    """How busy the GPUs were during one kind of work: means over the time that it was the innermost kind."""

    kind: str
    duration_s: float
    """GPU seconds that readings cover."""
    own: float
    """How much of the readings' time this kind took: near 1 its own figures, below that mixed with other kinds'."""
    bound: str | None
    """One of "compute-bound", "memory-bound", "launch-bound" and "mixed" (`activity.bound_by`)."""
    sm: float | None
    """Share of the SMs that had work."""
    occupancy: float | None
    """Resident warps over those that would fit."""
    tensor: float | None
    """Share of the tensor pipes' time."""
    dram: float | None
    """Share of the memory's bandwidth."""
    nvlink_rx_bytes_per_s: float | None
    nvlink_tx_bytes_per_s: float | None
