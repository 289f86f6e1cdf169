"""`energy-plugins report`: whole runs, running and killed ones, and folders that hold no report."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import COMMAND, Simulated, call

from energy_plugins.measure.columns import Columns
from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.measure.report import Report
from energy_plugins.measure.report_parts import STEP_COLUMNS
from energy_plugins.testing import Constant


@pytest.fixture
def folders(simulated: Simulated, tmp_path: Path) -> tuple[Path, Path]:
    """A run of 40 s and 80 steps, and its folder as it was after 30 s."""
    simulation = simulated(Constant(200), virtual=True, start_s=10)
    whole, partial = tmp_path / "whole", tmp_path / "partial"
    with EnergyMeter("steps", folder=whole) as meter:
        for step in range(80):
            with meter.step(samples=4):
                simulation.advance(0.5)
            if step == 60:
                shutil.copytree(whole, partial)
    return whole, partial


def test_shows_the_table(folders: tuple[Path, Path]) -> None:
    whole, _ = folders
    done = call("report", whole)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{Report.load(whole)}\n", "")
    assert call("report", whole / "report.json").stdout == done.stdout


def test_shows_the_header_as_json(folders: tuple[Path, Path]) -> None:
    whole, _ = folders
    assert json.loads(call("report", whole, "--json").stdout) == json.loads((whole / "report.json").read_text())


def test_shows_a_row_for_each_step(folders: tuple[Path, Path]) -> None:
    whole, _ = folders
    steps = Report.load(whole).steps
    rows = [json.loads(line) for line in call("report", whole, "--steps", "--json").stdout.splitlines()]
    assert [row["index"] for row in rows] == list(range(80))
    assert [row["energy_j"] for row in rows] == steps["energy_j"].tolist()
    assert {row["samples"] for row in rows} == {4}
    assert {row["tokens"] for row in rows} == {None}
    heading, *lines = call("report", whole, "--steps").stdout.splitlines()
    assert heading.split() == list(STEP_COLUMNS)
    assert len(lines) == 80
    assert {len(line) for line in lines} == {len(heading)}
    cells = dict(zip(heading.split(), lines[40].split(), strict=True))
    assert float(cells["energy_j"]) == pytest.approx(100, rel=0.05)
    assert (cells["index"], cells["samples"], cells["tokens"]) == ("40", "4", "-")


@pytest.mark.parametrize(("limit", "rows"), [(0, 0), (7, 7), (1000, 80)])
def test_shows_only_the_first_steps(folders: tuple[Path, Path], limit: int, rows: int) -> None:
    whole, _ = folders
    lines = call("report", whole, "--steps", "--json", "--limit", str(limit)).stdout.splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(rows))


def test_a_run_that_goes_on_or_was_killed_shows_what_is_settled(folders: tuple[Path, Path]) -> None:
    _, partial = folders
    done = call("report", partial)
    assert (done.returncode, done.stderr) == (0, "")
    assert "INCOMPLETE" in done.stdout
    steps = call("report", partial, "--steps", "--json")
    assert 15 <= len(steps.stdout.splitlines()) < 80
    assert steps.stderr == f"the run has not ended, or was killed: {len(steps.stdout.splitlines())} steps are settled\n"


def test_what_was_not_measured_is_a_dash_and_null(folders: tuple[Path, Path], tmp_path: Path) -> None:
    report = Report.load(folders[0])
    unmeasured = Columns.of({**report.steps, "energy_j": np.full(80, np.nan)})
    replace(report, steps=unmeasured).save(tmp_path / "unmeasured")
    done = call("report", tmp_path / "unmeasured", "--steps", "--json", "--limit", "1")
    assert json.loads(done.stdout)["energy_j"] is None
    assert call("report", tmp_path / "unmeasured", "--steps", "--limit", "1").stdout.splitlines()[1].split()[3] == "-"


def test_a_long_run_is_streamed_to_a_reader_that_may_leave(folders: tuple[Path, Path], tmp_path: Path) -> None:
    report, count = Report.load(folders[0]), 3_000_000
    long = Columns.of({name: np.resize(column, count) for name, column in report.steps.items()})
    replace(report, steps=long).save(tmp_path / "long")
    arguments = [*COMMAND, "report", str(tmp_path / "long"), "--steps"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().split() == list(STEP_COLUMNS)
        process.stdout.readline()
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak_mib = int(status.partition("VmHWM:")[2].split()[0]) / 1024
        process.stdout.close()
        assert process.stderr.read() == ""
    # The columns alone are 229 MiB; an interpreter with numpy takes some 40.
    assert peak_mib < 150


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file or directory"),
        ({}, "holds no report.json"),
        ({"report.json": "nonsense"}, "report.json"),
        ({"report.json": '{"schema_version": 99}'}, "schema_version"),
    ],
)
def test_a_wrong_folder_is_a_sentence(tmp_path: Path, content: dict[str, str] | None, said: str) -> None:
    folder = tmp_path / "folder"
    if content is not None:
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_text(text)
    done = call("report", folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_limit_is_about_steps(folders: tuple[Path, Path]) -> None:
    done = call("report", folders[0], "--limit", "3")
    assert done.returncode == 2
    assert "--steps" in done.stderr
