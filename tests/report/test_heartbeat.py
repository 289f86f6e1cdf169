"""Every run leaves an entry in the spool, however it ends; and the spool never keeps a run from going on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from energy_plugins.measure.heartbeat import SoFar
from energy_plugins.measure.ledger_entry import LedgerEntry, Status
from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.measure.report import Report
from energy_plugins.report.ledger.spool import read_spool
from energy_plugins.testing import Constant, Simulation

Simulated = Callable[..., Simulation]
POWER_W = 300.0


@pytest.fixture
def virtual(simulated: Simulated) -> Simulation:
    return simulated(Constant(POWER_W), virtual=True, start_s=10)


@pytest.fixture
def spool(state_home: Path) -> Path:
    return state_home / "energy-plugins" / "spool"


def entries(spool: Path) -> list[LedgerEntry]:
    found = list(read_spool(spool))
    assert not [one.trouble for one in found if one.trouble]
    return [one.entry for one in found if one.entry is not None]


def only(spool: Path) -> LedgerEntry:
    (entry,) = entries(spool)
    return entry


def test_a_run_says_who_ran_what_where_and_ends_with_what_its_report_says(virtual: Simulation, spool: Path) -> None:
    meter = EnergyMeter("digits", config={"model": "ResNet", "framework": "mine"}, project="vision").start()
    for _ in range(5):
        with meter.step(samples=32):
            virtual.advance(1)
    meter.stop()
    report, entry = meter.report(), only(spool)
    assert (entry.run_id, entry.name, entry.node, entry.started) == (
        report.run_id,
        report.name,
        report.node,
        report.started,
    )
    assert (entry.project, entry.model, entry.framework, entry.simulated) == ("vision", "ResNet", "mine", True)
    assert (entry.status, entry.energy_j, entry.duration_s) == (Status.FINISHED, report.total_j, report.duration_s)
    assert {gpu.uuid: gpu.energy_j for gpu in entry.gpus} == report.gpu_j
    assert (entry.steps, entry.samples, entry.tokens) == (5, 160, None)
    assert entry.process.pid == os.getpid()
    assert spool.stat().st_mode & 0o077 == 0
    assert [path.name for path in spool.iterdir()] == [f"{report.run_id}.json"]


def test_at_any_moment_less_than_ten_seconds_are_missing(virtual: Simulation, spool: Path) -> None:
    lost_s, beats = [], set()
    with EnergyMeter() as meter:
        for second in range(1, 120):
            with meter.step(samples=1, tokens=10):
                virtual.advance(1)
            if second >= 3:  # from its first entry on
                entry = only(spool)
                assert entry.status is Status.RUNNING
                assert entry.energy_j == pytest.approx(POWER_W * entry.duration_s, rel=0.02, abs=30)
                assert entry.steps == pytest.approx(entry.duration_s, abs=3)
                assert (entry.samples, entry.tokens) == (entry.steps or None, 10 * entry.steps or None)
                lost_s.append(second - entry.duration_s)
                beats.add(entry.beat)
    assert max(lost_s) < 10
    assert 12 <= len(beats) <= 25  # no more often than needed: each is a write that waits for the disk


@pytest.mark.parametrize("raised", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_an_exception_ends_has_failed(virtual: Simulation, spool: Path, raised: type[BaseException]) -> None:
    def train() -> None:
        with EnergyMeter():
            virtual.advance(2)
            raise raised

    with pytest.raises(raised):
        train()
    assert only(spool).status is Status.FAILED


def test_a_run_without_a_gpu_says_why_it_has_no_joules(
    simulated: Simulated, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation = simulated(Constant(POWER_W), virtual=True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with EnergyMeter():
        simulation.advance(3)
    entry = only(spool)
    assert (entry.status, entry.energy_j, entry.gpus) == (Status.FINISHED, None, ())
    assert "no GPU is visible" in entry.missing


@pytest.mark.parametrize("said", ["0", "false", "no", "off", "OFF"])
def test_one_variable_keeps_runs_out(
    virtual: Simulation, state_home: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setenv("ENERGY_REPORT_LEDGER", said)
    with EnergyMeter():
        virtual.advance(3)
    assert list(state_home.iterdir()) == []


def test_a_meter_may_be_told_otherwise(virtual: Simulation, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EnergyMeter(ledger=False):
        virtual.advance(3)
    assert not spool.exists()
    monkeypatch.setenv("ENERGY_REPORT_LEDGER", "0")
    with EnergyMeter(ledger=True):
        virtual.advance(3)
    assert only(spool).beat > 0


def test_what_says_neither_yes_nor_no_is_no(
    virtual: Simulation, state_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENERGY_REPORT_LEDGER", "perhaps")
    with pytest.warns(RuntimeWarning, match="ENERGY_REPORT_LEDGER is 'perhaps'; expected true or false"):
        meter = EnergyMeter().start()
    meter.stop()
    assert list(state_home.iterdir()) == []
    assert "ENERGY_REPORT_LEDGER is 'perhaps'" in " ".join(meter.report().warnings)


def test_the_project_is_the_repository_unless_somebody_says(
    virtual: Simulation, spool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "robots" / ".git").mkdir(parents=True)
    (tmp_path / "robots" / "experiments").mkdir()
    monkeypatch.chdir(tmp_path / "robots" / "experiments")
    EnergyMeter("a").start().stop()
    monkeypatch.setenv("ENERGY_REPORT_PROJECT", "arms")
    EnergyMeter("b").start().stop()
    EnergyMeter("c", project="legs").start().stop()
    assert sorted((one.name, one.project) for one in entries(spool)) == [("a", "robots"), ("b", "arms"), ("c", "legs")]


def test_names_that_nobody_can_print_do_no_harm(virtual: Simulation, spool: Path) -> None:
    name = "<script>alert(1)</script>\x1b[31m\n\0" + "x" * 500
    EnergyMeter(name, project="\udcff").start().stop()
    assert only(spool).name.startswith("<script>alert(1)</script> [31m")
    assert len(only(spool).name) == 200


def test_a_meter_inside_another_says_so(virtual: Simulation, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENERGY_INSIDE_RUN", "shell")
    with EnergyMeter("outer") as outer:
        assert outer.run is not None
        around = outer.run.run_id
        with EnergyMeter("inner"):
            virtual.advance(1)
    EnergyMeter("later").start().stop()
    assert {one.name: one.inside for one in entries(spool)} == {"outer": "shell", "inner": around, "later": "shell"}


def test_a_run_that_another_measures_counts_nowhere(virtual: Simulation, spool: Path) -> None:
    meter = EnergyMeter().start()
    virtual.advance(5)
    assert only(spool).status is Status.RUNNING  # an importer may have seen it
    meter.leave_no_entry()
    meter.stop(failed=True)
    assert only(spool).status is Status.DISCARDED


def test_a_full_disk_is_said_once_and_the_run_goes_on(
    virtual: Simulation, spool: Path, tmp_path: Path, state_home: Path
) -> None:
    spool.parent.mkdir(parents=True)
    spool.touch()  # where the folder should be: every write fails
    with (
        pytest.warns(RuntimeWarning, match="the ledger may lack this run: .*spool: File exists") as said,
        EnergyMeter(folder=tmp_path / "report") as meter,
    ):
        virtual.advance(60)
    assert len(said) == 1
    report = Report.load(tmp_path / "report")
    assert report.total_j == meter.report().total_j == pytest.approx(POWER_W * 60, rel=0.01)
    assert "the ledger may lack this run" in " ".join(report.warnings)


def test_a_disk_that_is_full_for_a_while_has_the_end_all_the_same(
    virtual: Simulation, spool: Path, recwarn: pytest.WarningsRecorder
) -> None:
    with EnergyMeter() as meter:
        virtual.advance(10)
        before = only(spool)
        with full_disk():
            virtual.advance(20)
        assert only(spool) == before  # as it was, and no halves
        virtual.advance(10)
    assert [str(one.message) for one in recwarn if "may lack" in str(one.message)] != []
    assert only(spool).energy_j == meter.report().total_j
    assert len(list(spool.iterdir())) == 1


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow: the kernel's own refusal, as of a full disk."""
    import resource

    found = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, found[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, found)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a folder that is somebody else's")
def test_the_spool_of_another_user_is_left_alone(virtual: Simulation, spool: Path) -> None:
    spool.mkdir(parents=True)
    os.chown(spool, 65534, 65534)
    with pytest.warns(RuntimeWarning, match="spool belongs to user 65534, not to you"):
        EnergyMeter().start().stop()
    assert list(spool.iterdir()) == []


def test_without_a_home_folder_the_run_goes_on(virtual: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/proc/nowhere")
    with pytest.warns(RuntimeWarning, match="the ledger may lack this run: /proc/nowhere"), EnergyMeter() as meter:
        virtual.advance(2)
    assert meter.report().total_j == pytest.approx(POWER_W * 2, rel=0.05)


KILLED = """
import os, sys, time
from energy_plugins.measure.meter import EnergyMeter
meter = EnergyMeter("doomed").start()
print("started", flush=True)
while True:
    with meter.step(samples=1):
        time.sleep(0.05)
"""


def test_a_run_that_is_killed_is_there_with_what_it_drew(simulated: Simulated, spool: Path) -> None:
    real = simulated(Constant(POWER_W))
    with subprocess.Popen([sys.executable, "-c", KILLED], env=real.environment(), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        began_s = time.monotonic()
        while not any(one.beat > 1 for one in entries(spool)):
            assert time.monotonic() - began_s < 30
            time.sleep(0.1)
        assert only(spool).status is Status.RUNNING
        process.send_signal(signal.SIGKILL)
        process.wait()
        lived_s = time.monotonic() - began_s
    entry = only(spool)
    assert (entry.name, entry.status) == ("doomed", Status.KILLED)
    assert lived_s - 10 < entry.duration_s <= lived_s + 1
    assert entry.energy_j == pytest.approx(POWER_W * entry.duration_s, rel=0.1)


def test_a_meter_in_real_time_that_is_left_to_the_interpreter_says_how_it_ended(
    simulated: Simulated, spool: Path
) -> None:
    real = simulated(Constant(POWER_W))
    code = "from energy_plugins.measure.meter import EnergyMeter\nEnergyMeter({!r}).start()\n{}"
    for name, end in (("fine", ""), ("broken", "raise ValueError")):
        words = [sys.executable, "-c", code.format(name, end)]
        subprocess.run(words, env=real.environment(), capture_output=True, check=False)
    assert {one.name: one.status.value for one in entries(spool)} == {"fine": "finished", "broken": "failed"}


def test_who_only_watches_is_no_run(simulated: Simulated, state_home: Path) -> None:
    real = simulated(Constant(POWER_W))
    command = [sys.executable, "-m", "energy_plugins", "watch", "--once"]
    subprocess.run(command, env=real.environment(), check=True, capture_output=True)
    assert list(state_home.iterdir()) == []


def test_joules_a_little_below_zero_are_none_at_all(virtual: Simulation, spool: Path) -> None:
    meter = EnergyMeter().start()
    assert meter.run is not None
    gpus = {gpu.uuid: -1e-9 for gpu in virtual.gpus}
    meter.run.heartbeat.beat(0, SoFar(0.0, -1e-9, gpus, steps=0, samples=None, tokens=None))
    assert (only(spool).energy_j, only(spool).gpus[0].energy_j) == (0.0, 0.0)
    meter.stop()


def test_a_command_and_what_it_measures_of_itself_are_told_apart(
    simulated: Simulated, spool: Path, tmp_path: Path
) -> None:
    real = simulated(Constant(POWER_W))
    inner = """
import sys
from energy_plugins.measure.meter import EnergyMeter
EnergyMeter("inner").start().stop()
sys.exit(3)
"""
    command: list[Any] = [sys.executable, "-m", "energy_plugins", "run", "--quiet", "-o", tmp_path / "out", "--"]
    subprocess.run([*command, sys.executable, "-c", inner], env=real.environment(), check=False)
    found = {one.name: one for one in entries(spool)}
    outer = found.pop(Path(sys.executable).name)
    assert found["inner"].inside == outer.run_id == json.loads((tmp_path / "out" / "report.json").read_text())["run_id"]
    assert (outer.status, outer.framework, found["inner"].status) == (Status.FAILED, "command", Status.FINISHED)


@pytest.fixture
def hangs(state_home: Path, tmp_path: Path) -> Iterator[Callable[[bool], None]]:
    """Put the spool on a disk of its own, and give what makes that hang, and go on again."""
    image = tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    try:
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", image, state_home], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs to mount a disk of its own: {error}")

    def hang(hung: bool) -> None:
        subprocess.run(["fsfreeze", "-f" if hung else "-u", state_home], check=True)

    try:
        yield hang
    finally:
        subprocess.run(["fsfreeze", "-u", state_home], check=False, capture_output=True)
        subprocess.run(["umount", "-l", state_home], check=True)


@pytest.mark.alone
def test_a_disk_that_hangs_delays_nothing(
    simulated: Simulated, spool: Path, tmp_path: Path, hangs: Callable[[bool], None]
) -> None:
    simulated(Constant(POWER_W))
    meter = EnergyMeter(folder=tmp_path / "report").start()
    time.sleep(0.5)
    hangs(True)
    for _ in range(30):
        began_s = time.monotonic()
        with meter.step(samples=1):
            time.sleep(0.1)
        assert time.monotonic() - began_s < 1.0
    began_s = time.monotonic()
    with pytest.warns(RuntimeWarning, match="the ledger may lack this run: the disk takes too long"):
        meter.stop()
    assert time.monotonic() - began_s < 3.0
    hangs(False)
    for thread in threading.enumerate():
        if thread.name == "energy-ledger":
            thread.join(10)  # it goes on where it hung
    report = meter.report()
    assert (report.complete, report.steps.rows) == (True, 30)
    assert report.total_j == pytest.approx(POWER_W * report.duration_s, rel=0.05)
