"""The report's folder: what is saved is loaded, and whatever else lies there is told apart from it in clear words."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from energy_plugins.errors import ColumnError, EnergyError, ReportError
from energy_plugins.measure.columns import Columns, ColumnWriter, Schema, column_path
from energy_plugins.measure.report import Report, write_header
from energy_plugins.measure.report_files import power_folder, prepare_folder, steps_folder
from energy_plugins.measure.report_parts import POWER_COLUMNS, SPAN_COLUMNS, STEP_COLUMNS, Work

Disk: TypeAlias = Callable[[int], AbstractContextManager[None]]

UUID = "GPU-3f8a1c92-0b1d-4f6e-9d61-52d6f1a0c7b4"
NOBODY = 65534


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """Give a folder whose parents everyone may enter, unlike those of tmp_path."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextmanager
def with_mode(folder: Path, mode: int) -> Iterator[None]:
    """Take rights on ``folder`` away from this process, also where tests run as root."""
    found, user = folder.stat().st_mode, os.geteuid()
    folder.chmod(mode)
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(found)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((folder / "report.json").read_text())
    change(values)
    (folder / "report.json").write_text(json.dumps(values))


@pytest.fixture
def saved(tmp_path: Path, typical_report: Report) -> Path:
    return typical_report.save(tmp_path / "report")


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_saved_is_loaded(any_report: st.SearchStrategy[Report], data: st.DataObject) -> None:
    report = data.draw(any_report)
    with TemporaryDirectory() as folder:
        assert report.save(folder) == Path(folder)
        assert Report.load(folder) == report
        assert Report.load(Path(folder) / "report.json") == report


def test_what_an_earlier_version_did_not_know_is_missing(saved: Path, typical_report: Report) -> None:
    def forget(values: dict[str, Any]) -> None:
        for key in ("cpu_domains", "cpu_estimate_j", "cpu_estimate_label"):
            del values[key]

    edit(saved, forget)
    assert Report.load(saved) == typical_report


def test_ratios_are_of_the_whole_window(typical_report: Report) -> None:
    report = dataclasses.replace(
        typical_report, total_j=600.0, duration_s=3.0, work=Work(steps=2, samples=300, tokens=1200)
    )
    assert report.avg_power_w == 200.0
    assert report.joules_per_sample == 2.0
    assert report.samples_per_j == 0.5
    assert report.tokens_per_j == 2.0


def test_ratios_of_what_was_not_measured_are_none(typical_report: Report) -> None:
    unmeasured = dataclasses.replace(typical_report, total_j=None)
    assert unmeasured.avg_power_w is None
    assert unmeasured.samples_per_j is None
    assert dataclasses.replace(typical_report, work=Work()).joules_per_sample is None
    assert dataclasses.replace(typical_report, work=Work(samples=0)).joules_per_sample is None
    assert dataclasses.replace(typical_report, duration_s=0.0).avg_power_w is None


def test_the_header_is_strict_json_with_null_for_what_is_missing(saved: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    values = json.loads((saved / "report.json").read_text(), parse_constant=refuse)
    assert values["schema_version"] == 1
    assert values["cpu_j"] is None
    assert values["steps"]["columns"] == dict(STEP_COLUMNS)


def test_a_config_json_cannot_hold_is_kept_as_text(tmp_path: Path, typical_report: Report) -> None:
    config: Any = {"clip": float("inf"), "path": Path("data"), "n": np.int64(3), "x": np.float32(0.5), "pair": (1, 2)}
    dataclasses.replace(typical_report, config=config).save(tmp_path)
    assert Report.load(tmp_path).config == {"clip": None, "path": "data", "n": 3, "x": 0.5, "pair": [1, 2]}


def test_sections_of_others_survive(saved: Path, tmp_path: Path) -> None:
    edit(saved, lambda values: values.update(tuning={"limit_w": 450, "trail": [1, None]}))
    report = Report.load(saved)
    assert report.extra == {"tuning": {"limit_w": 450, "trail": [1, None]}}
    assert Report.load(report.save(tmp_path / "again")) == report


def test_a_report_from_before_a_key_existed_is_read(saved: Path, typical_report: Report) -> None:
    later = ("state", "activity", "gpu_states", "kind_activity", "underfilled_how", "rank", "ranks")
    edit(saved, lambda values: [values.pop(key) for key in later])
    assert Report.load(saved) == typical_report


def test_extra_may_not_shadow_a_field(tmp_path: Path, typical_report: Report) -> None:
    with pytest.raises(ReportError, match=r"extra may not hold \['total_j'\]"):
        dataclasses.replace(typical_report, extra={"total_j": 1}).save(tmp_path)


# A run that goes on, ends, or is killed


def table(schema: Schema, rows: int) -> Columns:
    return Columns.of({name: np.arange(rows).astype(code) for name, code in schema.items()})


@pytest.fixture
def running(typical_report: Report) -> Report:
    return dataclasses.replace(
        typical_report,
        complete=False,
        steps=Columns.empty(STEP_COLUMNS),
        spans=Columns.empty(SPAN_COLUMNS),
        power={UUID: Columns.empty(POWER_COLUMNS)},
    )


def test_a_killed_run_keeps_what_was_spilled(tmp_path: Path, typical_report: Report, running: Report) -> None:
    prepare_folder(tmp_path)
    write_header(tmp_path, running)
    steps = typical_report.steps
    writer = ColumnWriter(steps_folder(tmp_path), STEP_COLUMNS)
    writer.append(steps)
    with ColumnWriter(power_folder(tmp_path, UUID), POWER_COLUMNS) as power:
        power.append({"t_s": np.arange(4.0), "power_w": np.full(4, 300.0)})
    os.truncate(column_path(steps_folder(tmp_path), "end_s", "f8"), 1000 * 8 + 5)
    killed = Report.load(tmp_path)
    assert not killed.complete
    assert killed.steps.rows == 1000
    assert np.array_equal(killed.steps["energy_j"], steps["energy_j"][:1000], equal_nan=True)
    assert killed.power[UUID].rows == 4
    assert killed.warnings == typical_report.warnings
    assert "INCOMPLETE" in str(killed)
    writer.close()


def test_the_last_header_completes_the_report(tmp_path: Path, running: Report) -> None:
    prepare_folder(tmp_path)
    write_header(tmp_path, running)
    with ColumnWriter(steps_folder(tmp_path), STEP_COLUMNS) as writer:
        writer.append(running.steps)
        writer.append(table(STEP_COLUMNS, 10))
    steps = Columns.open(steps_folder(tmp_path), STEP_COLUMNS)
    write_header(tmp_path, dataclasses.replace(running, complete=True, steps=steps))
    loaded = Report.load(tmp_path)
    assert loaded.complete
    assert loaded.steps == table(STEP_COLUMNS, 10)
    assert loaded.warnings == running.warnings


def test_rows_lost_after_the_end_are_said_so(saved: Path) -> None:
    os.truncate(column_path(power_folder(saved, UUID), "t_s", "f8"), 100)
    column_path(saved / "spans", "kind", "i2").unlink()
    report = Report.load(saved)
    assert f"{UUID}: only 12 of 3000 rows are left on the disk" in report.warnings
    assert "spans: only 0 of 5 rows are left on the disk" in report.warnings


# Folders


def test_a_report_is_not_overwritten_unasked(saved: Path, typical_report: Report) -> None:
    before = files(saved)
    with pytest.raises(ReportError, match=r"holds a report: choose another folder, or pass overwrite=True"):
        typical_report.save(saved)
    with pytest.raises(ReportError, match="overwrite=True"):
        prepare_folder(saved)
    assert files(saved) == before


def test_columns_without_a_header_are_not_overwritten_unasked(saved: Path) -> None:
    (saved / "report.json").unlink()
    with pytest.raises(ReportError, match="overwrite=True"):
        prepare_folder(saved)


def test_overwriting_replaces_the_report_and_nothing_else(saved: Path, running: Report) -> None:
    (saved / "notes.txt").write_text("mine")
    (saved / "power" / "plot.png").write_text("mine")
    small = dataclasses.replace(running, power={}, name="second")
    small.save(saved, overwrite=True)
    assert Report.load(saved) == small
    assert (saved / "notes.txt").exists()
    assert (saved / "power" / "plot.png").exists()
    assert not list(power_folder(saved, UUID).glob("*"))
    prepare_folder(saved, overwrite=True)
    assert sorted(files(saved)) == ["notes.txt", "power/plot.png"]


def test_a_loaded_report_may_overwrite_itself(saved: Path, typical_report: Report) -> None:
    report = Report.load(saved)
    assert report.steps["index"][5] == 5
    report.save(saved, overwrite=True)
    assert Report.load(saved) == typical_report == report


@pytest.mark.parametrize("uuid", ["../../outside", "/etc", "..", ".", "", "MIG-GPU-1/0/1", "a\0b", "\ud800"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, uuid: str, typical_report: Report) -> None:
    folder = tmp_path / "report"
    report = dataclasses.replace(typical_report, power={uuid: typical_report.power[UUID]})
    report.save(folder)
    assert Report.load(folder) == report
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_file_in_place_of_the_folder(tmp_path: Path, typical_report: Report) -> None:
    (tmp_path / "report").write_text("mine")
    for use in (typical_report.save, prepare_folder):
        with pytest.raises(ReportError, match="Not a directory"):
            use(tmp_path / "report")
    assert (tmp_path / "report").read_text() == "mine"


def test_a_folder_that_may_not_be_written(public_folder: Path, typical_report: Report) -> None:
    with with_mode(public_folder, 0o555):
        for use in (typical_report.save, prepare_folder):
            with pytest.raises(ReportError, match="Permission denied"):
                use(public_folder / "report")
        with pytest.raises(ReportError, match="Permission denied"):
            write_header(public_folder, typical_report)
    assert files(public_folder) == {}


def test_a_report_that_may_not_be_read(public_folder: Path, typical_report: Report) -> None:
    saved = typical_report.save(public_folder / "report")
    with with_mode(saved, 0o000), pytest.raises(ReportError, match="Permission denied"):
        Report.load(saved)
    with with_mode(saved / "report.json", 0o000), pytest.raises(ReportError, match="Permission denied"):
        Report.load(saved)
    with with_mode(saved / "steps", 0o000), pytest.raises(ColumnError, match="Permission denied"):
        Report.load(saved)


@pytest.mark.parametrize("size", [100, 2000, 10_000])
def test_a_full_disk_leaves_the_earlier_report_as_it_was(
    saved: Path, size: int, typical_report: Report, disk_of: Disk
) -> None:
    before = files(saved)
    with disk_of(size), pytest.raises(EnergyError, match="File too large"):
        dataclasses.replace(typical_report, name="second").save(saved, overwrite=True)
    assert files(saved) == before


def test_a_full_disk_leaves_the_earlier_header_as_it_was(
    tmp_path: Path, typical_report: Report, running: Report, disk_of: Disk
) -> None:
    write_header(tmp_path, running)
    with disk_of(100), pytest.raises(ReportError, match=r"cannot write .*report.json: File too large"):
        write_header(tmp_path, dataclasses.replace(running, name="second"))
    assert Report.load(tmp_path).name == typical_report.name
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_a_header_is_replaced_and_never_rewritten(tmp_path: Path, running: Report) -> None:
    write_header(tmp_path, running)
    with (tmp_path / "report.json").open() as earlier:
        write_header(tmp_path, dataclasses.replace(running, name="second"))
        assert json.load(earlier)["name"] == running.name
    assert Report.load(tmp_path).name == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


# What is no report


def test_no_report_there(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"cannot read the report .*report.json: No such file"):
        Report.load(tmp_path)
    with pytest.raises(ReportError, match="No such file"):
        Report.load(tmp_path / "nowhere")


@pytest.mark.parametrize("version", [0, 2])
def test_another_schema_version(saved: Path, version: int) -> None:
    edit(saved, lambda values: values.update(schema_version=version))
    with pytest.raises(ReportError, match=rf"schema_version is {version}; this version of energy-plugins reads 1"):
        Report.load(saved)


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "null", '"text"', "[" * 100_000, '{"schema_version": 1' + "0" * 5000 + "}", "\udcff"]
)
def test_a_header_that_is_no_json_object(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ReportError, match=r"report\.json"):
        Report.load(tmp_path)


def set_at(path: tuple[Any, ...], value: object) -> Callable[[dict[str, Any]], None]:
    def change(values: Any) -> None:
        for key in path[:-1]:
            values = values[key]
        values[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda values: values.pop("duration_s"), "duration_s is missing"),
        (lambda values: values["work"].pop("steps"), r"work\.steps is missing"),
        (set_at(("schema_version",), "1"), "schema_version must be a whole number, 0 or more, found '1'"),
        (set_at(("name",), 3), "name must be text, found 3"),
        (set_at(("simulated",), 1), "simulated must be true or false, found 1"),
        (set_at(("total_j",), "many"), "total_j must be a number, found 'many'"),
        (set_at(("total_j",), float("nan")), "total_j must be a finite number, found nan"),
        (set_at(("total_j",), 10**400), "total_j must be a finite number"),
        (set_at(("coverage",), None), "coverage must be a number, found None"),
        (set_at(("gpu_j",), [1]), r"gpu_j must be an object, found \[1\]"),
        (set_at(("gpu_j", UUID), {}), rf"gpu_j\.{UUID} must be a number"),
        (set_at(("missing", "cpu_j"), None), r"missing\.cpu_j must be text"),
        (set_at(("work", "samples"), -1), r"work\.samples must be a whole number, 0 or more, found -1"),
        (set_at(("work", "steps"), True), r"work\.steps must be a whole number, 0 or more, found True"),
        (set_at(("kinds", 1, "energy_j"), []), r"kinds\[1\]\.energy_j must be a number"),
        (set_at(("kinds", 1), 7), "kinds must be a list of objects"),
        (set_at(("devices",), None), "devices must be a list of objects, found None"),
        (set_at(("devices", 0, "sensors"), [1]), r"devices\[0\]\.sensors must be a list of texts"),
        (set_at(("warnings",), "x" * 500), r"warnings must be a list of texts, found 'x{56}\.\.\."),
        (set_at(("steps",), []), r"steps must be an object"),
        (set_at(("steps", "rows"), 1.5), r"steps\.rows must be a whole number"),
        (set_at(("steps", "columns", "energy_j"), "i8"), r"steps\.columns must hold energy_j: f8"),
        (set_at(("steps", "columns"), {}), r"steps\.columns must hold coverage: f8, data_wait_j: f8"),
        (set_at(("spans", "columns", "../../x"), "f8"), r"spans\.columns is wrong: .* is no column name"),
        (set_at(("power", UUID, "columns", "x"), "f8/.."), rf"power\.{UUID}\.columns is wrong: .* unknown type"),
        (set_at(("config",), 1), "config must be an object"),
    ],
)
def test_a_wrong_value_is_named(saved: Path, change: Callable[[dict[str, Any]], object], complaint: str) -> None:
    edit(saved, change)
    with pytest.raises(ReportError, match=rf"report\.json: {complaint}"):
        Report.load(saved)


hostile: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, -1, 1e308, 10**30, "", "x", [], [1], {}, {"rows": 1}, {"x": [{}]}]
)


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_edit_loads_or_is_a_report_error(saved: Path, data: st.DataObject) -> None:
    original = (saved / "report.json").read_text()
    values: Any = json.loads(original)
    place, key = values, data.draw(st.sampled_from(sorted(values)))
    while isinstance(place[key], Mapping | list) and place[key] and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, Mapping) else range(len(place))))
    place[key] = data.draw(hostile)
    (saved / "report.json").write_text(json.dumps(values))
    try:
        str(Report.load(saved))
    except ReportError:
        pass
    finally:
        (saved / "report.json").write_text(original)


def test_a_header_that_could_not_be_read_again_is_never_written(tmp_path: Path, running: Report) -> None:
    write_header(tmp_path, running)
    with pytest.raises(ReportError, match="coverage must be a number"):
        write_header(tmp_path, dataclasses.replace(running, coverage=float("nan")))
    assert Report.load(tmp_path).coverage == running.coverage


def test_a_report_of_an_earlier_version_is_read(saved: Path, typical_report: Report) -> None:
    def forget(values: dict[str, Any]) -> None:
        del values["stopped"]
        del values["power_limit"]
        for name in ("others", "idle_w", "idle_measured"):
            del values["devices"][0][name]

    edit(saved, forget)
    assert Report.load(saved) == typical_report


def test_an_unknown_company_is_refused(saved: Path) -> None:
    edit(saved, lambda values: values["devices"][0]["others"].update(company="plenty"))
    with pytest.raises(ReportError, match=r"devices\[0\].others.company must be one of none, some, unknown"):
        Report.load(saved)


def test_above_idle_needs_both(typical_report: Report) -> None:
    assert typical_report.above_idle_j is None
    assert dataclasses.replace(typical_report, idle_j=2351.0).above_idle_j == 10_000
    assert dataclasses.replace(typical_report, idle_j=2351.0, total_j=None).above_idle_j is None
