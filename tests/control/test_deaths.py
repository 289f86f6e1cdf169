"""However a trainer ends, the limit that it found is back within two seconds: seen from outside, real processes."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from controlling import FOUND_W, SET_W, WITHIN_S, journal_of, limit_w, operator_sets, seconds_until, trainer, watchdogs
from torch.utils.data import DataLoader, Dataset

from energy_plugins import visible_gpus
from energy_plugins.control import PowerLimit
from energy_plugins.testing import Hang, Simulation

Simulated = Callable[..., Simulation]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
ENDS = {"end": "pass", "exception": "raise ValueError", "sys.exit": "sys.exit(3)", "os._exit": "os._exit(3)"}

LIMITED = """
with PowerLimit(gpus[0]).at(watts=SET_W):
    say("ready")
    {}
"""
WAITING = LIMITED.format("time.sleep(60)")


@pytest.fixture
def simulation(simulation: Simulation) -> Simulation:
    """Give a GPU on which an operator has set a limit."""
    operator_sets(FOUND_W)
    return simulation


def assert_put_back(simulation: Simulation) -> None:
    """Wait for the limit and for the end of the journal's entry."""
    seconds_until(lambda: limit_w() == FOUND_W, WITHIN_S)
    seconds_until(lambda: not journal_of(simulation), WITHIN_S)


@pytest.mark.parametrize("end", ENDS)
def test_it_ends_by_itself(simulation: Simulation, end: str) -> None:
    with trainer(simulation, LIMITED.format(f"sys.stdin.readline(); {ENDS[end]}")) as process:
        assert limit_w() == SET_W
        process.communicate("go\n", timeout=WITHIN_S * 5)
        assert_put_back(simulation)


@pytest.mark.parametrize("number", SIGNALS)
def test_it_is_sent_a_signal(simulation: Simulation, number: signal.Signals) -> None:
    with trainer(simulation, WAITING) as process:
        assert limit_w() == SET_W
        process.send_signal(number)
        process.wait()
        assert_put_back(simulation)


@pytest.mark.parametrize("number", SIGNALS)
def test_its_process_group_is_sent_a_signal(simulation: Simulation, number: signal.Signals) -> None:
    with trainer(simulation, WAITING) as process:
        os.killpg(process.pid, number)
        process.wait()
        assert_put_back(simulation)


def test_those_who_kill_its_children_first_do_not_find_the_watchdog(simulation: Simulation) -> None:
    """Launchers do so, and terminate whatever is left in the end: the watchdog outlives that by a moment."""
    body = f"import socket; kept = socket.socket(); kept.set_inheritable(True)\n{WAITING}"
    with trainer(simulation, body) as process:
        assert Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text() == ""
        (watchdog,) = watchdogs(process.pid)
        assert os.getsid(watchdog) != os.getsid(process.pid)
        own = {"/dev/null", str(simulation.journal), "anon_inode:[pidfd]"}
        seconds_until(lambda: open_files(watchdog) == own)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(watchdog, number)
        process.kill()
        process.wait()
        assert_put_back(simulation)
        seconds_until(lambda: not watchdogs(process.pid))


def open_files(pid: int) -> set[str]:
    """Return what a process has open."""
    found = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(str(file.readlink()))
    return found


class Sleepy(Dataset[int]):
    """Items of ten seconds each."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> int:
        time.sleep(10)
        return index


def train_with_workers(told: Connection, end: str) -> None:
    """Fork workers of a data loader inside the block, tell their numbers, and end."""
    os.setpgid(0, 0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with PowerLimit(visible_gpus()[0]).at(watts=SET_W):
        workers = iter(DataLoader(Sleepy(), num_workers=2))
        told.send([worker.pid for worker in workers._workers])  # type: ignore[attr-defined]
        match end:
            case "exception":
                raise ValueError
            case "sys.exit":
                sys.exit(3)
            case "signal":
                time.sleep(60)
    time.sleep(60)


@pytest.mark.parametrize(
    ("end", "group"),
    [("end", False), ("exception", False), ("sys.exit", False), *itertools.product(SIGNALS, (False, True))],
)
def test_with_workers_of_a_data_loader(simulation: Simulation, end: str | signal.Signals, group: bool) -> None:
    """They inherit all that a trainer has open, and outlive it by seconds."""
    fork = multiprocessing.get_context("fork")
    told, tells = fork.Pipe(duplex=False)
    process = fork.Process(
        target=train_with_workers, args=(tells, "signal" if isinstance(end, signal.Signals) else end)
    )
    process.start()
    assert process.pid is not None
    try:
        workers = told.recv()
        if isinstance(end, signal.Signals):
            assert limit_w() == SET_W
            (os.killpg if group else os.kill)(process.pid, end)
        assert_put_back(simulation)
        if not group:
            assert all(_alive(worker) for worker in workers), "nothing was inherited by anybody who lives"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        process.close()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("reached", [False, True])
def test_killed_between_the_journal_and_the_first_change(simulation: Simulation, reached: bool) -> None:
    """What was written down has not happened, or the driver does it late: undoing it is right in both cases."""
    body = """
with PowerLimit(gpus[0]).at() as limit:
    say("ready")
    sys.stdin.readline()
    limit.set(SET_W)
"""
    with trainer(simulation, body) as process:
        simulation.gpus[0].inject(Hang("nvmlDeviceSetPowerManagementLimit", 60))
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        (entry,) = simulation.journal.glob("GPU-*.power.json")
        seconds_until(lambda: str(SET_W) in entry.read_text())
        (watchdog,) = watchdogs(process.pid)
        os.kill(watchdog, signal.SIGSTOP)
        process.kill()
        process.wait()
        simulation.gpus[0].heal()
        if reached:
            operator_sets(SET_W)
        assert limit_w() == (SET_W if reached else FOUND_W)
        os.kill(watchdog, signal.SIGCONT)
        assert_put_back(simulation)


def test_killed_between_the_journal_and_a_later_change(simulation: Simulation) -> None:
    """The GPU has the value before, or the one after: both are ours."""
    body = """
with PowerLimit(gpus[0]).at(watts=SET_W) as limit:
    say("ready")
    sys.stdin.readline()
    limit.set(300)
"""
    with trainer(simulation, body) as process:
        simulation.gpus[0].inject(Hang("nvmlDeviceSetPowerManagementLimit", 60))
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        (entry,) = simulation.journal.glob("GPU-*.power.json")
        seconds_until(lambda: "300" in entry.read_text())
        assert limit_w() == SET_W
        process.kill()
        process.wait()
        simulation.gpus[0].heal()
        assert_put_back(simulation)
