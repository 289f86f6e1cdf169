"""A twentieth of `make ledger-load`: real processes, killed at any moment, lose no joule and count none twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from _postgres import postgres_missing
from ledgering import row

from energy_plugins.measure.ledger_entry import LedgerRow, Status
from energy_plugins.report.ledger.runs import runs_of

LOAD = Path(__file__).parents[2] / "benchmarks" / "ledger_load.py"
PATIENCE_S = 400
POSTGRES = pytest.mark.skipif(bool(postgres_missing()), reason=postgres_missing() or "it is there")


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=POSTGRES)])
def test_no_run_that_had_a_heartbeat_is_lost_and_totals_are_exact(database: str) -> None:
    command = [sys.executable, str(LOAD), "--scale", "20", "--only", database, "--no-result"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout
    assert f"PASS  {database}: runs lost that had a heartbeat: 0" in done.stdout


def test_the_judge_of_the_load_sees_what_is_wrong() -> None:
    from ledger_load import Truth, energy_j, gpu_j, judge, run_id

    def run(number: int, beat: int, status: str = "finished") -> LedgerRow:
        gpus = {f"GPU-0-{gpu}": gpu_j(number, beat, gpu) for gpu in range(2)}
        return row(run_id(0, number), dict(gpus), status=Status(status))

    names = [run_id(0, number) for number in range(1, 5)]
    truth = Truth(beats=dict(zip(names, (3, 3, 0, 3), strict=True)), ended=set(names[:1]))
    good = [run(1, 3), run(2, 4, "killed"), run(4, 3, "killed")]

    def judged(rows: list[LedgerRow]) -> tuple[float, ...]:
        found = judge(truth, runs_of(rows), runs_each=5, slots=1)
        return found["lost"], found["wrong"], found["total_j"], found["total_off_j"]

    whole = sum(energy_j(number, beat) for number, beat in ((1, 3), (2, 4), (4, 3)))
    assert judged(good) == (0, 0, whole, 0.0)
    assert judged(good[1:])[:2] == (1, 0)  # lost
    assert judged([run(1, 4), *good[1:]])[:2] == (0, 1)  # joules of a heartbeat that never was
    assert judged([good[0], run(2, 2, "killed"), good[2]])[:2] == (0, 1)  # those of an earlier one
    assert judged([good[0], run(2, 4, "running"), good[2]])[:2] == (0, 1)  # not seen to have ended
    assert judged([*good, run(3, 1, "killed")])[:2] == (0, 0)  # never told, but written
    assert judged([*good, run(3, 2, "killed")])[:2] == (0, 1)
