"""The result of a measurement: a frozen value, and the folder it is kept in.

The folder holds ``report.json``, whose keys are the fields of `Report`, and columns beside it: ``steps/``, ``spans/``
and ``power/<GPU>/``. Energies are joules, times are seconds since the window opened. What was not measured is None
(NaN in a column, null in JSON) and `Report.missing` says why; it is never 0.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeVar

from energy_plugins.errors import ReportError
from energy_plugins.measure.columns import Columns, ColumnWriter, Schema
from energy_plugins.measure.json_section import JSON, Section, parse, plain, read_fields
from energy_plugins.measure.limit_part import LimitPart
from energy_plugins.measure.micro_batch_part import MicroBatchPart
from energy_plugins.measure.rank_part import Rank
from energy_plugins.measure.ranks import Ranks
from energy_plugins.measure.report_files import (
    HEADER,
    activity_folder,
    folder_errors,
    header_path,
    move_report,
    power_folder,
    refuse_earlier,
    spans_folder,
    state_folder,
    steps_folder,
    write_atomically,
)
from energy_plugins.measure.report_parts import (
    ACTIVITY_COLUMNS,
    POWER_COLUMNS,
    SPAN_COLUMNS,
    STATE_COLUMNS,
    STEP_COLUMNS,
    CpuDomain,
    DeviceInfo,
    GpuState,
    KindActivity,
    KindTotal,
    Observer,
    Part,
    Work,
)

_P = TypeVar("_P", bound=Part)

SCHEMA_VERSION: Final = 1
_VERSION_KEY = "schema_version"
_LATER: Final[Mapping[str, JSON]] = {
    "cpu_domains": [],
    "cpu_estimate_j": None,
    "cpu_estimate_label": "",
    "state": {},
    "activity": {},
    "gpu_states": [],
    "kind_activity": [],
    "underfilled_how": "",
    "stopped": "",
    "rank": None,
    "ranks": None,
    "power_limit": None,
    "micro_batch": None,
}
"""Keys that a report may lack because the version that wrote it did not know them, and what that stands for."""
_LATER_OBSERVER: Final[Mapping[str, JSON]] = {"ranks_s": 0.0}
_BY_GPU: Final[Mapping[str, tuple[Callable[[Path, str], Path], Schema]]] = {
    "power": (power_folder, POWER_COLUMNS),
    "state": (state_folder, STATE_COLUMNS),
    "activity": (activity_folder, ACTIVITY_COLUMNS),
}
"""Fields that hold a table for each GPU, where those lie, and what they must hold."""
OF_THE_WHOLE: Final = ("avg_power_w", "joules_per_sample", "samples_per_j", "tokens_per_j", "above_idle_j")
"""What is worked out from the total, and only if no joules are missing from it."""
_ROWS_A_TIME = 65536  # a copy stays below 10 MB whatever the length of the run


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a run drew and where it went; ``str(report)`` is a table."""

    run_id: str
    name: str
    node: str
    started: str
    """Wall time in UTC, ISO 8601."""
    duration_s: float
    complete: bool
    """False while the run goes, and for ever if it was killed."""
    simulated: bool
    total_j: float | None
    gpu_j: Mapping[str, float | None]
    """Joules by GPU UUID."""
    cpu_j: float | None = None
    """What all CPU packages of the machine drew, for whatever process; not in `total_j`, which is of GPUs."""
    dram_j: float | None = None
    """The same of the machine's memory, where it has a counter of its own; not in `cpu_j`."""
    cpu_domains: tuple[CpuDomain, ...] = ()
    """The counters that `cpu_j` and `dram_j` are the sums of."""
    cpu_estimate_j: float | None = None
    """An estimate of `cpu_j`, if one was asked for and nothing was measured; in no sum."""
    cpu_estimate_label: str = ""
    """How the estimate was made."""
    error_bound_j: float | None = None
    """95 % bound of `total_j` against these sensors themselves."""
    sensor_accuracy: float = 0.05
    """Systematic error of the sensors as a fraction: one unknown factor per GPU, so it cancels between runs on one card
    and not between cards. About 5 % for NVIDIA's (arXiv:2312.02741)."""
    coverage: float = 0.0
    """Fraction of the window that readings cover."""
    idle_j: float | None = None
    """What the measured GPUs would have drawn doing nothing for as long, by their idle baseline."""
    stall_j: float | None = None
    peer_wait_j: float | None = None
    underfilled_j: float | None = None
    """Drawn inside steps while they did not fill the GPU: an estimate, made as `underfilled_how` says."""
    underfilled_how: str = ""
    data_wait_j: float | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    """Name of what was not measured -> why."""
    steps: Columns = field(default_factory=lambda: Columns.empty(STEP_COLUMNS))
    spans: Columns = field(default_factory=lambda: Columns.empty(SPAN_COLUMNS))
    span_kinds: tuple[str, ...] = ()
    """What the codes in ``spans["kind"]`` stand for."""
    kinds: tuple[KindTotal, ...] = ()
    """Time and energy during which each kind was the innermost one; together they are the run."""
    phases: tuple[KindTotal, ...] = ()
    """Whole spans of each kind, with everything inside them; kinds that contain each other overlap here."""
    power: Mapping[str, Columns] = field(default_factory=dict)
    """Power over time by GPU UUID."""
    state: Mapping[str, Columns] = field(default_factory=dict)
    """Clock, temperature, limits, utilisation and clock reasons over time by GPU UUID, a row a second.

    What is dear to read is read less often, and keeps its value for up to 30 s."""
    gpu_states: tuple[GpuState, ...] = ()
    """The same in short, for each GPU."""
    activity: Mapping[str, Columns] = field(default_factory=dict)
    """How busy the parts of each GPU were over time, by UUID; where the activity lane was on."""
    kind_activity: tuple[KindActivity, ...] = ()
    """The same in short, for each kind of work."""
    work: Work = field(default_factory=Work)
    observer: Observer = field(default_factory=Observer)
    devices: tuple[DeviceInfo, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, JSON] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    stopped: str = ""
    """Why the training was ended early, where this package did it."""
    power_limit: LimitPart | None = None
    """The power limit that was chosen for it; None if none was asked for."""
    micro_batch: MicroBatchPart | None = None
    """The micro-batch that was chosen for it; None if none was asked for."""
    rank: Rank | None = None
    """Which process of the training this report is of, where it was told; everything but `ranks` is of this one."""
    ranks: Ranks | None = None
    """The whole training, in the report of rank 0."""
    extra: Mapping[str, JSON] = field(default_factory=dict)
    """Sections of ``report.json`` that this version does not know, kept through load and save."""

    @property
    def _whole_j(self) -> float | None:
        """The total if it is that of the whole window: a part of it says nothing of means."""
        return None if OF_THE_WHOLE[0] in self.missing else self.total_j

    @property
    def avg_power_w(self) -> float | None:
        """Mean power over the window in watts; None where joules of it are missing from the total."""
        return _ratio(self._whole_j, self.duration_s)

    @property
    def above_idle_j(self) -> float | None:
        """Joules beyond what the same GPUs would have drawn doing nothing; None without a baseline."""
        return None if self._whole_j is None or self.idle_j is None else self._whole_j - self.idle_j

    @property
    def joules_per_sample(self) -> float | None:
        """Joules of the whole window per sample trained on."""
        return _ratio(self._whole_j, self.work.samples)

    @property
    def samples_per_j(self) -> float | None:
        """Samples trained on per joule of the whole window."""
        return _ratio(self.work.samples, self._whole_j)

    @property
    def tokens_per_j(self) -> float | None:
        """Tokens trained on per joule of the whole window."""
        return _ratio(self.work.tokens, self._whole_j)

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read the report in a folder, or the folder of a ``report.json``; columns are mapped when they are used.

        Raises:
            ReportError: there is no report, it may not be read, is of another schema version or has a wrong value.
            ColumnError: the columns may not be read.
        """
        header = header_path(Path(path))
        with folder_errors("cannot read the report", header):
            text = header.read_bytes()
        return _read(parse(text, str(header)), header.parent)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write everything to ``folder`` and return it. All is written aside first and then moved into place.

        Raises:
            ReportError: the folder holds a report and ``overwrite`` is not set, or it cannot be written.
            ColumnError: the disk failed. In both cases an earlier report in ``folder`` is as it was.
        """
        target = Path(folder)
        refuse_earlier(target, overwrite=overwrite)
        with folder_errors("cannot save the report to", target):
            target.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(prefix=".saving-", dir=target) as aside:
                _write_columns(Path(aside), self)
                write_header(Path(aside), self)
                move_report(Path(aside), target)
        return target

    def to_html(self, path: str | Path) -> Path:
        """Write this report as one page that opens anywhere and asks no network; return its path.

        It has grams of carbon where the report's ``config`` or the configuration (``report.country``) names a place.

        Raises:
            ReportError: the extra ``report`` is not installed, or the file cannot be written.
            ColumnError: the columns may not be read.
        """
        from energy_plugins.report.html import write_html  # noqa: PLC0415 - upward, and measuring does not need it

        return write_html(self, path)

    def to_png(self, folder: str | Path) -> tuple[Path, ...]:
        """Write the pictures of that page as PNG files into ``folder``; return their paths. Raises as `to_html`."""
        from energy_plugins.report.png import write_png  # noqa: PLC0415 - upward, and measuring does not need it

        return write_png(self, folder)

    def header(self) -> dict[str, JSON]:
        """Return what ``report.json`` holds: every field, and of columns the number of rows and their types."""
        return _header(self)

    def __str__(self) -> str:
        from energy_plugins.measure.summary import text_table  # noqa: PLC0415 - measuring does not need it

        return text_table(self)


def write_header(folder: Path, report: Report) -> None:
    """Write ``report.json`` for columns that lie in ``folder`` or are still being written there.

    Raises:
        ReportError: the disk failed, and an earlier header is as it was; or ``report`` holds what JSON cannot.
    """
    text = json.dumps(_header(report), indent=1, allow_nan=False)
    _read(parse(text, "the new report.json"), folder)  # never put a header in place that cannot be read again
    write_atomically(folder / HEADER, text + "\n")


def _header(report: Report) -> dict[str, JSON]:
    values = {name: _json(getattr(report, name)) for name in _KEYS}
    if clash := report.extra.keys() & {_VERSION_KEY, *_KEYS}:
        raise ReportError(f"Report.extra may not hold {sorted(clash)}: report.json has keys of that name")
    return {_VERSION_KEY: SCHEMA_VERSION, **values, **{key: plain(value) for key, value in report.extra.items()}}


def _json(value: object) -> JSON:
    match value:
        case Columns():
            return {"rows": value.rows, "columns": dict(value.schema)}
        case Part():
            return {item.name: _json(getattr(value, item.name)) for item in dataclasses.fields(value)}
        case Mapping():
            return {str(name): _json(item) for name, item in value.items()}
        case tuple():
            return [_json(item) for item in value]
        case _:
            return plain(value)


def _read(section: Section, folder: Path) -> Report:
    section = section.with_defaults(_LATER)
    version = section.count(_VERSION_KEY)
    if version != SCHEMA_VERSION:
        complaint = f"is {version}; this version of energy-plugins reads {SCHEMA_VERSION}: use the one that wrote it"
        raise section.error(_VERSION_KEY, complaint)
    complete = section.flag("complete")
    steps = _Table.open(section.section("steps"), steps_folder(folder), STEP_COLUMNS, complete=complete)
    spans = _Table.open(section.section("spans"), spans_folder(folder), SPAN_COLUMNS, complete=complete)
    by_gpu = {
        name: {
            uuid: _Table.open(table, place(folder, uuid), schema, complete=complete)
            for uuid, table in section.section_by_name(name).items()
        }
        for name, (place, schema) in _BY_GPU.items()
    }
    tables = (steps, spans, *(table for tables in by_gpu.values() for table in tables.values()))
    losses = tuple(table.loss for table in tables if table.loss)
    parts: dict[str, Any] = {
        "steps": steps.columns,
        "spans": spans.columns,
        **{name: {uuid: table.columns for uuid, table in tables.items()} for name, tables in by_gpu.items()},
        "work": Work.read(section.section("work")),
        "observer": Observer.read(section.section("observer").with_defaults(_LATER_OBSERVER)),
        "cpu_domains": _parts(CpuDomain, section, "cpu_domains"),
        "devices": _parts(DeviceInfo, section, "devices"),
        "kinds": _parts(KindTotal, section, "kinds"),
        "phases": _parts(KindTotal, section, "phases"),
        "gpu_states": _parts(GpuState, section, "gpu_states"),
        "kind_activity": _parts(KindActivity, section, "kind_activity"),
        "rank": None if section.absent("rank") else Rank.read(section.section("rank")),
        "power_limit": None if section.absent("power_limit") else LimitPart.read(section.section("power_limit")),
        "micro_batch": None if section.absent("micro_batch") else MicroBatchPart.read(section.section("micro_batch")),
        "ranks": None if section.absent("ranks") else Ranks.read(section.section("ranks")),
        "extra": section.others({_VERSION_KEY, *_KEYS}),
    }
    report = Report(**read_fields(Report, section, *parts), **parts)
    return dataclasses.replace(report, warnings=report.warnings + losses)


def _parts(kind: type[_P], section: Section, key: str) -> tuple[_P, ...]:
    return tuple(kind.read(part) for part in section.sections(key))


@dataclass(frozen=True)
class _Table:
    """A table as the header describes it, and what the disk no longer has of it."""

    columns: Columns
    loss: str = ""

    @classmethod
    def open(cls, section: Section, folder: Path, required: Schema, *, complete: bool) -> _Table:
        rows, schema = section.count("rows"), section.text_by_name("columns")
        if lacking := sorted(name for name, code in required.items() if schema.get(name) != code):
            complaint = f"must hold {', '.join(f'{name}: {required[name]}' for name in lacking)}"
            raise section.error("columns", complaint)
        try:
            columns = Columns.open(folder, schema, rows=rows if complete else None)
        except ValueError as error:
            raise section.error("columns", f"is wrong: {error}") from error
        lost = complete and columns.rows < rows
        return cls(columns, f"{folder.name}: only {columns.rows} of {rows} rows are left on the disk" if lost else "")


def _write_columns(folder: Path, report: Report) -> None:
    for place, columns in _tables(folder, report):
        with ColumnWriter(place, columns.schema) as writer:
            for start in range(0, columns.rows, _ROWS_A_TIME):
                writer.append({name: array[start : start + _ROWS_A_TIME] for name, array in columns.items()})


def _tables(folder: Path, report: Report) -> Iterator[tuple[Path, Columns]]:
    yield steps_folder(folder), report.steps
    yield spans_folder(folder), report.spans
    for name, (place, _) in _BY_GPU.items():
        for uuid, columns in getattr(report, name).items():
            yield place(folder, uuid), columns


def _ratio(value: float | None, by: float | None) -> float | None:
    return value / by if value is not None and by else None


_KEYS = tuple(item.name for item in dataclasses.fields(Report) if item.name != "extra")
