"""A meter survives forks, exits and exceptions, and a killed run keeps what was settled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from measuring import POWER_W, lasted_s

from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.measure.report import Report
from energy_plugins.testing import Simulation


def python(code: str, simulation: Simulation, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        env=simulation.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(("ending", "folder"), [("os._exit(0)", "run"), ("sys.exit(0)", "run"), ("sys.exit(0)", "")])
def test_a_forked_child_does_nothing_and_takes_nothing_away(
    real: Simulation, tmp_path: Path, ending: str, folder: str
) -> None:
    code = f"""
import os, sys, time
from energy_plugins.errors import EnergyError
from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.testing import library
meter = EnergyMeter(folder=sys.argv[1] or None).start()
with meter.step():
    time.sleep(0.7)
child = os.fork()
if child == 0:
    assert not meter.running
    with meter.step(samples=5), meter.span("child"):
        pass
    meter.latest()
    meter.stop()
    try:
        meter.report()
    except EnergyError as error:
        assert "nothing to report" in str(error)
    else:
        raise AssertionError
    {ending}
assert os.waitpid(child, 0)[1] == 0
with meter.step():
    time.sleep(0.7)
meter.stop()
report = meter.report()
assert report.steps.rows == 2, report
assert abs(report.steps["energy_j"] - 210).max() < 40, report.steps["energy_j"]
assert "child" not in report.span_kinds
assert report.work.samples is None
assert report.warnings == ()
"""
    done = python(code, real, str(tmp_path / folder) if folder else "")
    assert (done.returncode, done.stderr) == (0, "")
    assert not folder or Report.load(tmp_path / folder).complete


def test_a_child_may_measure_with_a_meter_of_its_own(virtual: Simulation) -> None:
    with EnergyMeter() as meter:
        virtual.advance(1)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                assert not meter.running
                meter.start().stop()
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        virtual.advance(1)
    assert meter.report().complete


def test_an_exit_with_a_running_meter_ends_it_whole(real: Simulation, tmp_path: Path) -> None:
    code = """
import sys, time
from energy_plugins.measure.meter import EnergyMeter
meter = EnergyMeter(folder=sys.argv[1]).start()
with meter.step():
    time.sleep(0.5)
forgotten = EnergyMeter().start()
meter.begin("open")
sys.exit(3)
"""
    done = python(code.replace('meter.begin("open")', ""), real, str(tmp_path / "run"))
    assert (done.returncode, done.stderr) == (3, "")
    report = Report.load(tmp_path / "run")
    assert report.complete
    assert report.steps.rows == 1


def test_an_exception_that_ends_the_program_keeps_the_report(real: Simulation, tmp_path: Path) -> None:
    code = """
import sys, time
from energy_plugins.measure.meter import EnergyMeter
with EnergyMeter(folder=sys.argv[1]) as meter, meter.step():
    time.sleep(0.5)
    raise KeyboardInterrupt
"""
    done = python(code, real, str(tmp_path / "run"))
    assert done.returncode != 0
    assert "KeyboardInterrupt" in done.stderr
    assert Report.load(tmp_path / "run").complete


def test_a_killed_run_keeps_all_but_its_last_seconds(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.testing import Constant, simulated_gpus
with simulated_gpus(Constant(300), virtual=True, start_s=10) as simulation:
    meter = EnergyMeter("killed", folder=sys.argv[1]).start()
    for _ in range(400):
        with meter.step(samples=2):
            simulation.advance(0.1)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")
    report = Report.load(tmp_path / "run")
    assert not report.complete
    assert (report.name, report.simulated) == ("killed", True)
    # Virtual time: the counter was read at 10 and at 29 s. What may be lost at worst, tests of faults say.
    assert 40 - report.steps["end_s"].max() <= 11.5
    assert 40 - report.duration_s <= 11.5
    assert report.total_j == pytest.approx(POWER_W * report.duration_s, rel=0.01)
    assert report.steps["energy_j"] == pytest.approx(POWER_W * lasted_s(report.steps), rel=0.02)
    assert report.work.samples == pytest.approx(20 * report.duration_s, rel=0.05)
    (power,) = report.power.values()
    assert power["t_s"].max() > 37
    assert "killed" in str(report)
