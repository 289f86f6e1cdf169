"""What one run tells the ledger of itself: one small JSON object, written anew with every heartbeat."""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import Enum
from typing import Final, Self

from energy_plugins.errors import ReportError
from energy_plugins.measure.json_section import JSON, Section, parse, plain, read_fields
from energy_plugins.measure.report_parts import Part

SPOOL_VERSION: Final = 1
_VERSION_KEY: Final = "spool_version"
_RUN_ID: Final = re.compile(r"[0-9A-Za-z_-]{1,64}")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?\+00:00")
_MOST_TEXT: Final = 200
_MOST_COUNT: Final = 2**63 - 1
"""What databases count to."""


class Status(Enum):
    """What became of a run."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    KILLED = "killed"
    """Its process has ended without a last word. No run says this of itself."""
    SILENT = "silent"
    """No heartbeat for long, and whether its process has ended cannot be seen. No run says this of itself."""
    DISCARDED = "discarded"
    """Another run measured the same joules: this one counts nowhere."""


@dataclass(frozen=True, kw_only=True)
class GpuEntry(Part):
    """What a run drew on one GPU; None if nothing of it was measured."""

    uuid: str
    name: str
    energy_j: float | None


@dataclass(frozen=True, kw_only=True)
class ProcessEntry(Part):
    """The process that measures, told apart from later ones of the same number and from other containers and boots."""

    pid: int
    start_ticks: int
    """Clock ticks from boot to its start: field 22 of ``/proc/PID/stat`` (proc(5))."""
    boot_id: str
    pid_namespace: int


@dataclass(frozen=True, kw_only=True)
class LedgerRow(Part):
    """A run as the ledger keeps it: who ran what where, and what it drew so far. Joules are of GPUs, as in a report."""

    run_id: str
    training_id: str
    """The run of rank 0 where several ranks are one training; its own where it is alone, or the others are unknown."""
    inside: str
    """The run that was measured around this one, whose joules hold this one's; empty if there is none."""
    rank: int
    world_size: int
    name: str
    node: str
    user: str
    project: str
    model: str
    framework: str
    simulated: bool
    started: str
    """Wall time in UTC, ISO 8601."""
    updated: str
    """When this was written: wall time in UTC, ISO 8601."""
    status: Status
    duration_s: float
    """How much of the run the joules are of."""
    energy_j: float | None
    missing: str
    """Why there are no joules, if there are none."""
    gpus: tuple[GpuEntry, ...]
    steps: int
    samples: int | None
    tokens: int | None


@dataclass(frozen=True, kw_only=True)
class LedgerEntry(LedgerRow):
    """What a run writes of itself: its row, and by what its next word and its end are known."""

    beat: int
    """Number of the heartbeat, from 1; the last word counts as one."""
    process: ProcessEntry

    @classmethod
    def read(cls, section: Section) -> Self:
        """Read it from JSON that anybody may have written; raises ReportError."""
        version = section.count(_VERSION_KEY)
        if version > SPOOL_VERSION:
            complaint = f"is {version}; this version of energy-plugins reads {SPOOL_VERSION}: use a newer one"
            raise section.error(_VERSION_KEY, complaint)
        entry = cls(
            **read_fields(cls, section, "status", "process", "gpus"),
            status=section.one_of("status", Status),
            process=ProcessEntry.read(section.section("process")),
            gpus=tuple(GpuEntry.read(gpu) for gpu in section.sections("gpus")),
        )
        if complaint := entry._complaint():
            raise ReportError(f"{section.source}: {complaint}")
        return entry

    @classmethod
    def decode(cls, data: bytes, source: str) -> Self:
        """Return what `encode` made ``data`` of; ``source`` names it in errors. Raises ReportError."""
        return cls.read(parse(data, source))

    def encode(self) -> str:
        """Return it as JSON."""
        return (
            json.dumps({_VERSION_KEY: SPOOL_VERSION, **asdict(self, dict_factory=_plain)}, indent=1, allow_nan=False)
            + "\n"
        )

    def _complaint(self) -> str:
        """Say why this cannot be an entry, or cannot be kept in a database; nothing if it can."""
        texts = [
            *(self.name, self.node, self.user, self.project, self.model, self.framework, self.missing),
            *(text for gpu in self.gpus for text in (gpu.uuid, gpu.name)),
        ]
        counts = (self.rank, self.world_size, self.beat, self.steps, self.samples or 0, self.tokens or 0)
        amounts = (self.duration_s, self.energy_j or 0.0, *(gpu.energy_j or 0.0 for gpu in self.gpus))
        wrong = {
            "its run_id, training_id or inside is none": not all(
                map(is_id, (self.run_id, self.training_id, self.inside or self.run_id))
            ),
            "a text in it is too long, or cannot be printed": any(text != one_line(text) for text in texts),
            "started or updated is no time in UTC, in ISO 8601": not (
                _is_time(self.started) and _is_time(self.updated)
            ),
            "a number in it is too large": max(counts) > _MOST_COUNT,
            "its joules or its duration are negative": min(amounts) < 0,
            "a GPU is in it twice": len({gpu.uuid for gpu in self.gpus}) < len(self.gpus),
        }
        return next((complaint for complaint, is_so in wrong.items() if is_so), "")


def one_line(text: str) -> str:
    """Return a text as an entry may hold it: short, and without what cannot be printed or encoded."""
    kept = "".join(" " if unicodedata.category(one) in {"Cc", "Cs", "Zl", "Zp"} else one for one in text[:_MOST_TEXT])
    return kept.strip()


def _plain(fields: list[tuple[str, object]]) -> dict[str, JSON]:
    return {name: plain(value) for name, value in fields}


def is_id(text: str) -> bool:
    """Tell whether a text may be what a run is called by."""
    return _RUN_ID.fullmatch(text) is not None


def _is_time(text: str) -> bool:
    try:
        return _TIME.fullmatch(text) is not None and datetime.fromisoformat(text) is not None
    except ValueError:
        return False
