"""The command line on a real GPU: what it finds, measures and shows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from energy_plugins.measure.devices import visible_gpus
from energy_plugins.measure.report import Report

pytestmark = pytest.mark.hardware

COMMAND = [sys.executable, "-m", "energy_plugins"]


def test_doctor_finds_all_that_is_needed() -> None:
    done = subprocess.run(
        [*COMMAND, "doctor", "--json", "--timeout", "30"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    checks = json.loads(done.stdout)["checks"]
    measured = {check["gpu"] for check in checks if check["name"] == "measured by" and check["status"] == "ok"}
    assert measured == {gpu.uuid for gpu in visible_gpus()}
    assert "SIMULATED" not in {check["name"] for check in checks}


def test_run_measures_a_command(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, "run", "--quiet", "-o", tmp_path, "--", "sleep", "3"], timeout=60, check=False)
    report = Report.load(tmp_path)
    assert done.returncode == 0
    assert report.avg_power_w is not None
    assert report.avg_power_w > 20 * len(visible_gpus())


def test_watch_shows_every_gpu() -> None:
    done = subprocess.run(
        [*COMMAND, "watch", "--once", "--json"], capture_output=True, text=True, timeout=60, check=True
    )
    rows = json.loads(done.stdout)["gpus"]
    assert [row["uuid"] for row in rows] == [gpu.uuid for gpu in visible_gpus()]
    assert [name for row in rows for name, value in row.items() if value is None] == []
