"""A journal that others remove, spoil or hold while a GPU is limited: what was found is put back all the same."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from controlling import DEAD, FOUND_W, SET_W, WITHIN_S, journal_of, limit_w, operator_sets, seconds_until, trainer

from energy_plugins import visible_gpus
from energy_plugins.control import Advise, DirectNvml, Lease, PowerLimit, Request, Standing
from energy_plugins.control.entry import Entry, Knob
from energy_plugins.control.journal import Journal
from energy_plugins.control.restore import Ending
from energy_plugins.errors import RefusedError
from energy_plugins.testing import NoPermission, Simulation

Simulated = Callable[..., Simulation]

ENTRY, LOCK = "GPU-*.power.json", "GPU-*.lock"
HOLD = """
with PowerLimit(gpus[0], look_every_s=0.02).at(watts=SET_W):
    say("ready")
    time.sleep(60)
"""


@pytest.fixture
def simulation(simulation: Simulation) -> Simulation:
    """Give a GPU on which an operator has set a limit."""
    operator_sets(FOUND_W)
    return simulation


def the_only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


SPOILT: dict[str, Callable[[Path], object]] = {
    "the folder is removed": shutil.rmtree,
    "the folder is open to others": lambda folder: folder.chmod(0o755),
    "the entry is removed": lambda folder: the_only(folder, ENTRY).unlink(),
    "the entry is cut": lambda folder: os.truncate(the_only(folder, ENTRY), 20),
    "the entry is open to others": lambda folder: the_only(folder, ENTRY).chmod(0o644),
    "the lock is open to others": lambda folder: the_only(folder, LOCK).chmod(0o644),
}
MENDED = [spoil for spoil in SPOILT if spoil != "the folder is open to others"]


@pytest.mark.parametrize("spoil", SPOILT)
def test_at_the_end_of_the_block_the_limit_is_back(simulation: Simulation, spoil: str) -> None:
    with PowerLimit(visible_gpus()[0]).at(watts=SET_W) as limit:
        SPOILT[spoil](simulation.journal)
    assert limit_w() == FOUND_W
    assert limit.restored is not None
    assert limit.restored.ending is Ending.RESTORED
    if simulation.journal.is_dir():
        simulation.journal.chmod(0o700)
        assert journal_of(simulation) == []


@pytest.mark.parametrize("spoil", MENDED)
def test_the_next_look_mends_it_for_the_watchdog(simulation: Simulation, spoil: str) -> None:
    with trainer(simulation, HOLD) as process:
        SPOILT[spoil](simulation.journal)
        seconds_until(lambda: is_whole(simulation.journal))
        process.kill()
        process.wait()
        seconds_until(lambda: limit_w() == FOUND_W, WITHIN_S)
        seconds_until(lambda: not journal_of(simulation), WITHIN_S)


def is_whole(folder: Path) -> bool:
    files = [*folder.glob(ENTRY), *folder.glob(LOCK)]
    modes = {path.stat().st_mode & 0o777 for path in files}
    return len(files) == 2 and modes == {0o600} and '"ours"' in the_only(folder, ENTRY).read_text()


def hold_the_lock(path: Path, tells: Connection) -> None:
    with path.open("r+") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        tells.send("held")
        time.sleep(60)


def test_a_lock_that_another_process_does_not_give_back(simulation: Simulation) -> None:
    fork = multiprocessing.get_context("fork")
    hears, tells = fork.Pipe(duplex=False)
    with PowerLimit(visible_gpus()[0]).at(watts=SET_W) as limit:
        other = fork.Process(target=hold_the_lock, args=(the_only(simulation.journal, LOCK), tells), daemon=True)
        other.start()
        assert hears.recv() == "held"
    other.kill()
    other.join()
    assert (limit_w(), journal_of(simulation)) == (FOUND_W, [])
    assert limit.restored is not None
    assert "another process holds" in limit.restored.why


class Another:
    """A back end with more rights, which takes whatever it is asked for."""

    name = "another"
    changes = True

    def __init__(self) -> None:
        self.asked = 0

    def take(self, request: Request) -> Lease:
        self.asked += 1
        return Advise().take(request)


@pytest.mark.parametrize("left", ["nonsense", "what cannot be put back"])
def test_where_what_was_found_is_not_sure_nobody_else_is_asked(simulation: Simulation, left: str) -> None:
    """A helper would take what a dead trainer left for what was found."""
    (gpu,) = visible_gpus()
    with Journal(simulation.journal) as journal:
        journal.write(Entry(uuid=gpu.uuid, knob=Knob.POWER, owner=DEAD, found=90_000.0, ours=(FOUND_W,)))
    if left == "nonsense":
        os.truncate(the_only(simulation.journal, ENTRY), 0)
    another = Another()
    with PowerLimit(gpu, back_ends=(DirectNvml(), another, Advise())).at(watts=SET_W) as limit:
        assert (limit.check(), limit.back_end, another.asked) == (Standing.ADVISED, "advice", 0)
    with pytest.raises(RefusedError), PowerLimit(gpu, back_ends=(DirectNvml(), another)).at(watts=SET_W):
        pass
    assert (another.asked, limit_w()) == (0, FOUND_W)


def test_where_only_the_right_is_missing_another_is_asked(simulated: Simulated) -> None:
    simulated(faults=[NoPermission()])
    another = Another()
    with PowerLimit(visible_gpus()[0], back_ends=(DirectNvml(), another, Advise())).at(watts=SET_W) as limit:
        assert (limit.back_end, another.asked) == ("another", 1)
