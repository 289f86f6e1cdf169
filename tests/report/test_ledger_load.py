"""A twentieth of `make ledger-load`: real processes, killed at any moment, lose no joule and count none twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from _postgres import postgres_missing

LOAD = Path(__file__).parents[2] / "benchmarks" / "ledger_load.py"
PATIENCE_S = 400
POSTGRES = pytest.mark.skipif(bool(postgres_missing()), reason=postgres_missing() or "it is there")


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=POSTGRES)])
def test_no_run_that_had_a_heartbeat_is_lost_and_totals_are_exact(database: str) -> None:
    command = [sys.executable, str(LOAD), "--scale", "20", "--only", database, "--no-result"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout
    assert f"PASS  {database}: runs lost that had a heartbeat: 0" in done.stdout
