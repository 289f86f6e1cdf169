"""`energy-plugins ledger`: what all runs cost, for people and for programs."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import call
from ledgering import ended_process, entry, spooled

from energy_plugins.measure.ledger_entry import GpuEntry, Status

KWH_J = 3.6e6


@pytest.fixture
def spool(state_home: Path) -> Path:
    """Three runs of two projects, one of them killed, and one on a simulated GPU."""
    folder = state_home / "energy-plugins"
    folder.mkdir()
    b200 = (GpuEntry(uuid="GPU-2", name="NVIDIA B200", energy_j=1 * KWH_J),)
    return spooled(
        folder / "spool",
        entry("a", 2 * KWH_J, name="first", started="2026-10-31T23:00:00.000+00:00"),
        entry("b", 1 * KWH_J, name="tried", status=Status.RUNNING, process=ended_process(), gpus=b200),
        entry("c", 0.5 * KWH_J, name="<b>talk</b>", project="speech", user="bob", model=""),
        entry("d", 9 * KWH_J, name="toy", simulated=True),
    )


def lines(*arguments: str | Path) -> list[dict[str, Any]]:
    done = call("ledger", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_says_what_each_project_cost_failed_tries_included(spool: Path) -> None:
    done = call("ledger")
    assert done.returncode == 0
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[1] == ["vision", "2", "1", "3.000", "kWh", "33.3", "%", "0.667"]
    assert rows[2] == ["speech", "1", "0", "500.0", "Wh", "0.0", "%", "2"]
    assert rows[3] == ["all", "3", "1", "3.500", "kWh", "28.6", "%", "0.857"]
    assert done.stderr == "left out: 1 on simulated GPUs (--simulated shows them)\n"
    assert call("ledger").stdout == done.stdout


@pytest.mark.parametrize(
    ("by", "energies_kwh"),
    [
        ("project", {"vision": 3.0, "speech": 0.5}),
        ("model", {"ResNet": 3.0, "": 0.5}),
        ("user", {"alice": 3.0, "bob": 0.5}),
        ("month", {"2026-10": 2.0, "2026-11": 1.5}),
        ("gpu", {"NVIDIA H200": 2.5, "NVIDIA B200": 1.0}),
    ],
)
def test_groups(spool: Path, by: str, energies_kwh: dict[str, float]) -> None:
    *groups, whole = lines("totals", "--by", by)
    assert {one["group"]: one["energy_kwh"] for one in groups} == energies_kwh
    assert (whole["group"], whole["energy_j"], whole["jobs"]) == (None, 3.5 * KWH_J, 3)


def test_charges_by_energy_and_by_job(spool: Path) -> None:
    charged = lines("totals", "--price-per-kwh", "0.2", "--price-per-job", "1")
    assert [round(one["charge"], 9) for one in charged] == [2.6, 1.1, 3.7]
    assert "charge" not in call("ledger", "totals").stdout
    assert "3.70" in call("ledger", "totals", "--price-per-kwh", "0.2", "--price-per-job", "1").stdout


@pytest.mark.parametrize(
    ("which", "names"),
    [
        ([], ["<b>talk</b>", "tried", "first"]),
        (["--project", "vision"], ["tried", "first"]),
        (["--user", "bob"], ["<b>talk</b>"]),
        (["--since", "2026-11-01"], ["<b>talk</b>", "tried"]),
        (["--since", "2026-12"], []),
        (["--limit", "1"], ["<b>talk</b>"]),
        (["--simulated"], ["toy"]),
    ],
)
def test_lists_the_latest_first(spool: Path, which: list[str], names: list[str]) -> None:
    found = lines("list", *which)
    assert [one["name"] for one in found] == names
    table = call("ledger", "list", *which).stdout
    assert [name for name in names if name not in table] == []
    assert ("SIMULATED" in table) is ("--simulated" in which)
    assert {one["status"] for one in found if one["name"] == "tried"} <= {"killed"}


@pytest.mark.parametrize("format_", ["csv", "parquet"])
def test_exports(spool: Path, tmp_path: Path, format_: str) -> None:
    path = tmp_path / f"runs.{format_}"
    done = call("ledger", "export", path)
    assert (done.returncode, done.stdout) == (0, f"3 runs are in {path}\n")
    if format_ == "csv":
        with path.open(newline="") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
    else:
        rows = pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    assert [row["name"] for row in rows] == ["first", "tried", "<b>talk</b>"]
    assert sum(float(row["counted_j"]) for row in rows) == 3.5 * KWH_J
    assert {row["tokens"] for row in rows} == {"" if format_ == "csv" else None}
    assert [one["run_id"] for one in lines("list")[::-1]] == [row["run_id"] for row in rows]


def test_an_export_that_cannot_be_written_leaves_what_was_there(spool: Path, tmp_path: Path) -> None:
    assert "neither .csv nor .parquet" in call("ledger", "export", tmp_path / "runs.xlsx").stderr
    done = call("ledger", "export", tmp_path / "no" / "runs.csv")
    assert (done.returncode, done.stderr) == (1, f"{LEFT_OUT}Error: cannot write {tmp_path}/no/runs.csv: {GONE}\n")
    assert list(tmp_path.iterdir()) == []


LEFT_OUT = "left out: 1 on simulated GPUs (--simulated shows them)\n"
GONE = "No such file or directory"


def test_parquet_without_pyarrow_says_what_to_install(spool: Path, tmp_path: Path) -> None:
    import subprocess

    code = "import sys; sys.modules['pyarrow'] = None; from energy_plugins.cli.main import main; main(sys.argv[1:])"
    words = [sys.executable, "-c", code, "ledger", "export", str(tmp_path / "runs.parquet")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stderr.endswith("Error: Parquet needs pyarrow: pip install pyarrow, or name a .csv\n")


def test_a_team_gets_runs_only_by_import(spool: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/team.sqlite"
    assert "there is no ledger" in call("ledger", "list", "--url", url).stderr
    done = call("ledger", "import", "--url", url, "--remove")
    assert done.stdout == f"{tmp_path}/team.sqlite: 4 new runs, 0 brought up to date\n"
    assert len(lines("list", "--url", url)) == 3
    spooled(spool, entry("e"))
    assert len(lines("list", "--url", url)) == 3
    assert call("ledger", "import", "--url", url).stdout.endswith(" 1 new runs, 0 brought up to date\n")
    assert len(lines("list", "--url", url)) == 4


def test_files_that_are_passed_over_are_named(spool: Path) -> None:
    for number in range(7):
        (spool / f"bad-{number}.json").write_text("{")
        (spool / f"bad-{number}.json").chmod(0o600)
    done = call("ledger", "import")
    assert done.returncode == 0
    said = done.stderr.splitlines()
    assert [line.startswith(f"passed over: {spool}/bad-") for line in said] == [True] * 5 + [False]
    assert said[-1] == "passed over: 2 files more"


def test_an_empty_ledger_is_said() -> None:
    assert call("ledger").stdout == "the ledger has no such run\n"
    assert call("ledger", "list").stdout == "the ledger has no such run\n"
    assert lines("totals")[-1]["energy_j"] == 0
