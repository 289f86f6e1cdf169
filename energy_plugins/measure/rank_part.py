"""Which of several processes this one is, and what it tells the others of its measurement."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from energy_plugins.measure.json_section import Section, parse, plain, read_fields
from energy_plugins.measure.report_parts import Part
from energy_plugins.measure.spans import Kind

if TYPE_CHECKING:
    from energy_plugins.measure.report import Report

MOST_BYTES: Final = 65536
"""The most that one rank ever sends in one message."""
MOST_RANKS: Final = 1_000_000
"""What claims to be one of more is no training."""
_ROWS: Final = 65536
"""Means are over the latest rows of a table, so that telling costs the same however long the run is."""
_MOST_TEXT: Final = 256


@dataclass(frozen=True, kw_only=True)
class Rank(Part):
    """Which process of a training this is."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    """How many processes the launcher started on this node; 0 if nobody said."""
    pid: int = 0
    boot_id: str = ""
    """Of the kernel that it runs on, which is what containers of one machine share; empty if that cannot be read."""
    pid_space: str = ""
    """In which its `pid` means it."""
    gpu_choice: str = ""
    """How its GPU was found, if that is less sure than asking CUDA."""

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return self.world_size == 1

    @classmethod
    def of(cls, environ: Mapping[str, str], group: tuple[int, int] | None = None) -> Self:
        """Return who the variables of torchrun and its like, or else ``group`` (rank and world size), say it is.

        Numbers that are none, or make no sense together, are as if they were not set.
        """
        rank, size = _number(environ, "RANK"), _number(environ, "WORLD_SIZE")
        if group is not None:
            rank, size = group
        if rank is None or size is None or not rank < size <= MOST_RANKS:
            return cls()
        local, local_size = _number(environ, "LOCAL_RANK"), _number(environ, "LOCAL_WORLD_SIZE")
        if size == 1:
            local, local_size = 0, 1
        if local is None or local_size is None or local >= local_size:
            local, local_size = local or 0, 0
        return cls(rank=rank, world_size=size, local_rank=local, local_world_size=local_size)

    @classmethod
    def read(cls, section: Section) -> Self:
        """Read it from JSON; raises ReportError."""
        read = super().read(section)
        if not read.rank < read.world_size <= MOST_RANKS:
            raise section.error("rank", f"is {read.rank} of {read.world_size}, which cannot be")
        return read


@dataclass(frozen=True, kw_only=True)
class GpuPart(Part):
    """What one rank measured of one GPU during its window; None where it did not."""

    uuid: str
    energy_j: float | None
    error_bound_j: float | None


@dataclass(frozen=True, kw_only=True)
class Backward(Part):
    """The backward phase in those steps in which phases were marked: means over them."""

    steps: int
    seconds: float
    spread_s: float
    """Standard error of the mean; 0 if one step is all there is."""
    energy_j: float | None


@dataclass(frozen=True, kw_only=True)
class RankPart(Part):
    """One rank's report in short, for the others; None where something was not measured or not said."""

    who: Rank
    node: str
    run_id: str
    started: str
    duration_s: float
    complete: bool
    energy_j: float | None
    error_bound_j: float | None
    coverage: float
    gpus: tuple[GpuPart, ...]
    gpus_left_out: int = 0
    """GPUs that the message had no room for; `energy_j` has them."""
    steps: int = 0
    samples: int | None = None
    tokens: int | None = None
    step_j: float | None = None
    """Mean energy of the latest steps."""
    backward: Backward | None = None
    stall_j: float | None = None
    data_wait_j: float | None = None
    cpu_j: float | None = None
    dram_j: float | None = None
    warnings: int = 0

    @property
    def machine(self) -> str:
        """What tells its node from others."""
        return self.who.boot_id or self.node

    @classmethod
    def of(cls, report: Report, who: Rank | None = None) -> Self:
        """Return the part that ``report`` is, of the rank it names unless ``who`` is given.

        A report has one error bound for all its GPUs. It is divided so that the squares of the parts add up to its
        square, each in proportion to its GPU's joules, as for GPUs that are all measured alike.
        """
        begun = report.duration_s > 0  # else nothing is settled yet, which is no measurement of 0 J
        total_j, bound_j = report.total_j or 0.0, report.error_bound_j
        gpus = tuple(
            GpuPart(
                uuid=uuid,
                energy_j=energy_j if begun else None,
                error_bound_j=None
                if energy_j is None or bound_j is None or not begun
                else bound_j * float(np.sqrt(max(energy_j / total_j, 0.0) if total_j > 0 else 1.0)),
            )
            for uuid, energy_j in report.gpu_j.items()
        )
        return cls(
            who=who or report.rank or Rank(),
            node=report.node,
            run_id=report.run_id,
            started=report.started,
            duration_s=report.duration_s,
            complete=report.complete,
            energy_j=report.total_j if begun else None,
            error_bound_j=bound_j if begun else None,
            coverage=report.coverage if begun else 0.0,
            gpus=gpus,
            steps=report.work.steps,
            samples=report.work.samples,
            tokens=report.work.tokens,
            step_j=_step_j(report),
            backward=_backward(report),
            stall_j=report.stall_j,
            data_wait_j=report.data_wait_j,
            cpu_j=report.cpu_j,
            dram_j=report.dram_j,
            warnings=len(report.warnings),
        )

    @classmethod
    def read(cls, section: Section) -> Self:
        """Read it from JSON, which may come from another process; raises ReportError."""
        return cls(
            **read_fields(cls, section, "who", "gpus", "backward"),
            who=Rank.read(section.section("who")),
            gpus=tuple(GpuPart.read(gpu) for gpu in section.sections("gpus")),
            backward=None if section.absent("backward") else Backward.read(section.section("backward")),
        )

    def encode(self) -> bytes:
        """Return it as JSON of at most `MOST_BYTES`: where there are too many GPUs, without the last of them."""
        part = replace(
            self, node=self.node[:_MOST_TEXT], run_id=self.run_id[:_MOST_TEXT], started=self.started[:_MOST_TEXT]
        )
        while len(text := json.dumps(plain(asdict(part)), separators=(",", ":")).encode()) > MOST_BYTES:
            kept = len(part.gpus) // 2
            part = replace(part, gpus=part.gpus[:kept], gpus_left_out=part.gpus_left_out + len(part.gpus) - kept)
        return text

    @classmethod
    def decode(cls, data: bytes, source: str) -> Self:
        """Return what `encode` made ``data`` of; ``source`` names it in errors. Raises ReportError."""
        return cls.read(parse(data[: MOST_BYTES + 1], source))


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "").strip()
    return int(text) if text.isdecimal() and len(text) < 10 else None


def _step_j(report: Report) -> float | None:
    joules = report.steps["energy_j"][-_ROWS:]
    known = joules[np.isfinite(joules)]
    return float(known.mean()) if len(known) else None


def _backward(report: Report) -> Backward | None:
    """Return the means of the latest marked steps; one may have several backward spans, when gradients add up."""
    if Kind.BACKWARD.value not in report.span_kinds:
        return None
    rows = slice(-_ROWS, None)
    marked = report.spans["kind"][rows] == report.span_kinds.index(Kind.BACKWARD.value)
    begin_s, end_s = report.spans["start_s"][rows][marked], report.spans["end_s"][rows][marked]
    if not len(begin_s):
        return None
    step = np.searchsorted(report.steps["start_s"], begin_s, side="right")
    _, step = np.unique(step, return_inverse=True)
    seconds = np.bincount(step, end_s - begin_s)
    joules = np.bincount(step, report.spans["energy_j"][rows][marked])
    known = joules[np.isfinite(joules)]
    return Backward(
        steps=len(seconds),
        seconds=float(seconds.mean()),
        spread_s=float(seconds.std(ddof=1) / np.sqrt(len(seconds))) if len(seconds) > 1 else 0.0,
        energy_j=float(known.mean()) if len(known) else None,
    )
