"""Runs as a comparison needs them: what each drew, what it did, where, and how warm its GPUs were when it began."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from energy_plugins.errors import ReportError
from energy_plugins.measure.rank_folders import completed_from_disk
from energy_plugins.measure.report import Report
from energy_plugins.measure.report_files import HEADER, folder_errors, header_path
from energy_plugins.report.carbon.footprint import is_whole

SERIES = "interleaved"
"""Key of `Report.config` under which a run of an interleaved comparison has its round."""
_LATEST_START_S = 3.0
"""A temperature that was first read later than this says more about the run than about its start."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of one side of a comparison, of all its ranks together."""

    folder: Path
    run_id: str
    simulated: bool
    energy_j: float
    duration_s: float
    steps: int
    samples: int | None
    tokens: int | None
    place: str
    """Its nodes and GPUs."""
    gpus: tuple[str, ...]
    """Models."""
    round: str = ""
    """The series and round that it was interleaved in; empty if it was not."""
    coverage: float = 1.0
    """Fraction of it that readings cover."""
    start_c: float | None = None
    """Mean temperature of its GPUs when it began, None if that was not read."""

    @property
    def power_w(self) -> float:
        """Mean power."""
        return self.energy_j / self.duration_s


@dataclass(frozen=True)
class LeftOut:
    """A run that cannot be compared."""

    folder: Path
    reason: str


def read_runs(path: Path) -> tuple[list[Run], list[LeftOut]]:
    """Return the runs in ``path``, which is the folder of one, or holds such folders at any depth.

    Raises:
        ReportError: there is none, or a report cannot be read.
    """
    runs: list[Run] = []
    left_out: list[LeftOut] = []
    for folder in report_folders(path):
        found = run_of(completed_from_disk(Report.load(folder), folder), folder)
        if isinstance(found, Run):
            runs.append(found)
        else:
            left_out.append(found)
    if not runs and not left_out:
        raise ReportError(f"{path} holds no report.json, nor does a folder in it: name the folder of a run, or of runs")
    if not runs:
        raise ReportError(f"no run in {path} can be compared: {left_out[0].folder}: {left_out[0].reason}")
    return runs, left_out


def report_folders(path: Path) -> Iterator[Path]:
    """Yield the folders of reports in ``path``; those of ranks belong to the run around them. Raises ReportError."""
    with folder_errors("cannot read", path):
        path.stat()
        if path.is_file() and path.name != HEADER:
            raise ReportError(f"{path} is no report: name the folder of a run, or its {HEADER}")
        if path.is_file() or (path / HEADER).exists():
            yield header_path(path).parent
            return
        inside = sorted(one for one in path.iterdir() if one.is_dir() and not one.is_symlink())
    for folder in inside:
        yield from report_folders(folder)


def run_of(report: Report, folder: Path) -> Run | LeftOut:
    """Return what a comparison needs of ``report``, or why it cannot be compared."""
    whole, ranks = report, report.ranks
    energy_j, duration_s = whole.total_j, whole.duration_s
    steps, samples, tokens = whole.work.steps, whole.work.samples, whole.work.tokens
    missing = whole.missing
    places = [(whole.node, uuid) for uuid in whole.gpu_j]
    if ranks is not None:
        energy_j, duration_s, steps = ranks.total_j, ranks.duration_s, ranks.steps
        samples, tokens, missing = ranks.samples, ranks.tokens, ranks.missing
        places = [(row.part.node, gpu.uuid) for row in ranks.rows for gpu in row.part.gpus]
    if not report.complete:
        return LeftOut(folder, "the run has not ended, or was killed")
    if ranks is not None and not ranks.complete:
        return LeftOut(folder, "not all of its ranks left a report")
    if energy_j is None or "total_j" in missing or not is_whole(report):
        return LeftOut(folder, f"its energy was not measured: {missing.get('total_j', 'joules of it are missing')}")
    if not (energy_j > 0 and duration_s > 0):
        return LeftOut(folder, f"it drew {energy_j:g} J in {duration_s:g} s, of which there is no ratio")
    return Run(
        folder=folder,
        run_id=report.run_id,
        simulated=report.simulated,
        energy_j=energy_j,
        duration_s=duration_s,
        steps=steps,
        samples=samples,
        tokens=tokens,
        place=" ".join(sorted({f"{node}/{uuid}" for node, uuid in places})) or report.node,
        gpus=tuple(sorted({device.name for device in report.devices})),
        round=_round(report),
        coverage=whole.coverage if ranks is None else ranks.coverage,
        start_c=start_temperature_c(report),
    )


def start_temperature_c(report: Report) -> float | None:
    """Return the mean over the GPUs of their first temperature, None unless all were read early enough."""
    found = []
    for columns in report.state.values():
        at_s, known_c = columns["t_s"], columns["temperature_c"]
        read = np.flatnonzero(np.isfinite(known_c) & (at_s <= _LATEST_START_S))
        if not len(read):
            return None
        found.append(float(known_c[read[0]]))
    return math.fsum(found) / len(found) if found else None


def _round(report: Report) -> str:
    """Return what `energy-plugins compare --run` wrote down of the run, if it did."""
    said = report.config.get(SERIES)
    if not isinstance(said, dict):
        return ""
    return f"{said.get('series')}/{said.get('round')}"


def refuse_twice(runs: Sequence[Run]) -> None:
    """Raise ReportError if a run is there twice: it would be held against itself."""
    seen: dict[str, Path] = {}
    for run in runs:
        if run.run_id in seen:
            raise ReportError(f"{run.folder} and {seen[run.run_id]} hold the same run: name each run once")
        seen[run.run_id] = run.folder
