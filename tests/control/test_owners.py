"""Who controls a GPU: one process at a time, and one watchdog for all that a process controls."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from controlling import (
    FOUND_W,
    PREAMBLE,
    SET_W,
    WITHIN_S,
    is_replaced,
    journal_of,
    limit_w,
    operator_sets,
    seconds_until,
    trainer,
    watchdogs,
)

from energy_plugins import visible_gpus
from energy_plugins.control import LockedClocks, PowerLimit, Standing
from energy_plugins.control.entry import Entry, Knob
from energy_plugins.control.journal import Journal
from energy_plugins.control.nvml import Nvml
from energy_plugins.control.owner import Life, Owner
from energy_plugins.control.restore import Ending, Restored, replay
from energy_plugins.errors import OwnedError
from energy_plugins.testing import GpuLost, Simulation

Simulated = Callable[..., Simulation]

HOLD = """
with PowerLimit(gpus[{index}]).at(watts=SET_W + {index}):
    say("ready")
    time.sleep(60)
"""


@pytest.fixture
def two(simulated: Simulated) -> Simulation:
    """Give two GPUs on which an operator has set limits."""
    simulation = simulated(count=2)
    operator_sets(FOUND_W, 0)
    operator_sets(FOUND_W - 10, 1)
    return simulation


def replayed(simulation: Simulation) -> list[Restored]:
    with Journal(simulation.journal) as journal, Nvml(simulation.nvml_path) as nvml:
        return list(replay(journal, nvml.card))


def test_two_trainers_on_two_gpus(two: Simulation) -> None:
    with trainer(two, HOLD.format(index=0)) as first, trainer(two, HOLD.format(index=1)) as second:
        assert (limit_w(0), limit_w(1)) == (SET_W, SET_W + 1)
        first.kill()
        first.wait()
        seconds_until(lambda: limit_w(0) == FOUND_W, WITHIN_S)
        assert limit_w(1) == SET_W + 1
        second.kill()
        second.wait()
        seconds_until(lambda: limit_w(1) == FOUND_W - 10, WITHIN_S)


def test_two_trainers_want_one_gpu(two: Simulation) -> None:
    gpu = visible_gpus()[0]
    with trainer(two, HOLD.format(index=0)) as first:
        for attempt in (PowerLimit(gpu).at(watts=300), LockedClocks(gpu, assume_unlocked=True).at(mhz=1200)):
            with pytest.raises(OwnedError, match=f"process {first.pid} controls it") as caught, attempt:
                pass
            assert caught.value.pid == first.pid
        assert limit_w() == SET_W
        first.kill()
        first.wait()
        seconds_until(lambda: limit_w() == FOUND_W, WITHIN_S)
    with PowerLimit(gpu).at(watts=300):
        assert limit_w() == 300
    assert limit_w() == FOUND_W


def test_one_process_holds_a_limit_once(two: Simulation) -> None:
    first, second = visible_gpus()
    with PowerLimit(first).at(watts=SET_W), PowerLimit(second).at(watts=400):
        with pytest.raises(OwnedError, match="this process controls the power"), PowerLimit(first).at(watts=300):
            pass
        with LockedClocks(first, assume_unlocked=True).at(mhz=1200):
            assert len(journal_of(two)) == 3
        assert len(watchdogs(os.getpid())) == 1
    assert (limit_w(0), limit_w(1), watchdogs(os.getpid())) == (FOUND_W, FOUND_W - 10, [])


def test_a_forked_child_that_limits_a_gpu_itself_has_its_own_watchdog(two: Simulation) -> None:
    body = """
with PowerLimit(gpus[0]).at(watts=SET_W):
    child = os.fork()
    if child == 0:
        with PowerLimit(gpus[1]).at(watts=SET_W):
            say("ready")
            time.sleep(60)
    time.sleep(60)
"""
    with trainer(two, body) as parent:
        (child,) = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        assert (limit_w(0), limit_w(1)) == (SET_W, SET_W)
        os.kill(int(child), signal.SIGKILL)
        seconds_until(lambda: limit_w(1) == FOUND_W - 10, WITHIN_S)
        assert limit_w(0) == SET_W
        parent.kill()
        parent.wait()
        seconds_until(lambda: limit_w(0) == FOUND_W, WITHIN_S)


def test_a_watchdog_that_was_killed_is_replaced(two: Simulation) -> None:
    body = HOLD.format(index=0).replace("gpus[0])", "gpus[0], look_every_s=0.02)")
    with trainer(two, body) as process:
        (watchdog,) = watchdogs(process.pid)
        os.kill(watchdog, signal.SIGKILL)
        seconds_until(lambda: is_replaced(watchdog, process.pid))
        process.kill()
        process.wait()
        seconds_until(lambda: limit_w() == FOUND_W, WITHIN_S)


def test_a_watchdog_that_was_stopped_is_replaced(two: Simulation) -> None:
    """It would wake when it is continued, if ever."""
    body = HOLD.format(index=0).replace("gpus[0])", "gpus[0], look_every_s=0.02)")
    with trainer(two, body) as process:
        (watchdog,) = watchdogs(process.pid)
        os.kill(watchdog, signal.SIGSTOP)
        try:
            seconds_until(lambda: is_replaced(watchdog, process.pid))
        finally:
            with suppress(ProcessLookupError):
                os.kill(watchdog, signal.SIGCONT)
        process.kill()
        process.wait()
        seconds_until(lambda: limit_w() == FOUND_W, WITHIN_S)


def test_a_process_that_runs_another_program_puts_back_what_the_first_left(two: Simulation) -> None:
    """The number and the start of the process are the same, and nobody in it knows of the limit any more."""
    second = f"{PREAMBLE}{HOLD.format(index=0).replace('SET_W + 0', '300')}"
    body = f"""
with PowerLimit(gpus[0]).at(watts=SET_W):
    os.execv(sys.executable, [sys.executable, "-c", {second!r}])
"""
    with trainer(two, body) as process:
        assert limit_w() == 300
        process.kill()
        process.wait()
        seconds_until(lambda: limit_w() == FOUND_W, WITHIN_S)
        seconds_until(lambda: journal_of(two) == [], WITHIN_S)


def killed_with_its_watchdog(simulation: Simulation) -> int:
    """Leave a limit behind, as when a whole cgroup is killed, and return whose it is."""
    with trainer(simulation, HOLD.format(index=0)) as process:
        (watchdog,) = watchdogs(process.pid)
        os.kill(watchdog, signal.SIGKILL)
        process.kill()
        process.wait()
        seconds_until(lambda: not watchdogs(process.pid))
    assert (limit_w(), len(journal_of(simulation))) == (SET_W, 1)
    return process.pid


def test_the_next_trainer_puts_back_what_a_killed_cgroup_left(two: Simulation) -> None:
    """It takes the limit of the dead for none that was found."""
    killed_with_its_watchdog(two)
    with PowerLimit(visible_gpus()[0]).at(watts=600) as limit:
        assert (limit.found_w, limit.range_w, limit_w()) == (FOUND_W, (200, FOUND_W), 600)
    assert (limit_w(), journal_of(two)) == (FOUND_W, [])


def test_replaying_the_journal(two: Simulation) -> None:
    killed_with_its_watchdog(two)
    (restored,) = replayed(two)
    assert (restored.ending, limit_w(), journal_of(two)) == (Ending.RESTORED, FOUND_W, [])
    assert replayed(two) == []


def test_replaying_respects_a_later_change(two: Simulation) -> None:
    killed_with_its_watchdog(two)
    operator_sets(500)
    (restored,) = replayed(two)
    assert (restored.ending, limit_w(), journal_of(two)) == (Ending.FOREIGN, 500, [])


def test_replaying_without_the_gpu_keeps_the_entry(two: Simulation) -> None:
    killed_with_its_watchdog(two)
    two.gpus[0].inject(GpuLost())
    (kept,) = replayed(two)
    assert kept.ending is Ending.KEPT
    assert "lost" in kept.why
    with PowerLimit(visible_gpus()[0]).at(watts=500):  # of the GPU that still answers
        assert limit_w(1) == 500
    two.gpus[0].heal()
    (restored,) = replayed(two)
    assert (restored.ending, limit_w()) == (Ending.RESTORED, FOUND_W)


def rewrite_owner(simulation: Simulation, change: Callable[[Owner], Owner]) -> Entry:
    """Let the one entry of the journal be somebody else's."""
    (uuid,) = journal_of(simulation)
    with Journal(simulation.journal) as journal:
        entry = journal.read(uuid, Knob.POWER)
        assert entry is not None
        changed = replace(entry, owner=change(entry.owner))
        journal.write(changed)
    return changed


def test_after_a_reboot_nothing_is_put_back(two: Simulation) -> None:
    killed_with_its_watchdog(two)
    rewrite_owner(two, lambda owner: replace(owner, boot_id="of another boot"))
    (dropped,) = replayed(two)
    assert (dropped.ending, limit_w(), journal_of(two)) == (Ending.DROPPED, SET_W, [])


def test_a_number_that_is_used_again_is_another_process(two: Simulation) -> None:
    killed_with_its_watchdog(two)
    entry = rewrite_owner(two, lambda owner: replace(owner, pid=os.getpid()))
    assert entry.owner.life() is Life.DEAD
    (restored,) = replayed(two)
    assert (restored.ending, limit_w()) == (Ending.RESTORED, FOUND_W)


@contextmanager
def container(simulation: Simulation, body: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``body`` in a pid namespace of its own, which is killed as a whole, and leave it when that is ready."""
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", PREAMBLE + body]
    with subprocess.Popen(
        command, env=simulation.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            if process.stdout.readline().strip() != "ready":
                said = process.stderr.read()
                if said.startswith("unshare:"):
                    pytest.skip(f"no pid namespace can be made here: {said}")
                raise AssertionError(said)
            yield process
        finally:
            process.kill()


def test_a_container_is_left_alone_until_it_has_ended(two: Simulation) -> None:
    with container(two, HOLD.format(index=0)) as process:
        (kept,) = replayed(two)
        assert (kept.ending, limit_w()) == (Ending.KEPT, SET_W)
        with pytest.raises(OwnedError, match="another container"), PowerLimit(visible_gpus()[0]).at(watts=300):
            pass
        process.kill()
        process.wait()
        if Path("/proc/self/ns/pid").stat().st_ino != 0xEFFFFFFC:
            pytest.skip("only the initial pid namespace sees that another has ended")
        seconds_until(lambda: replayed(two)[0].ending is Ending.RESTORED)
    assert (limit_w(), journal_of(two)) == (FOUND_W, [])


HIDDEN = """
import subprocess
from energy_plugins.control.entry import Entry, Knob
from energy_plugins.control.owner import Owner
from energy_plugins.control.restore import settle
owner = Owner.current()
assert owner.pid == 1
subprocess.run(["mount", "-t", "proc", "-o", "hidepid={}", "proc", "/proc"], check=True)
if os.fork() == 0:
    os.setgroups([])
    os.setresgid(10001, 10001, 10001)
    os.setresuid(10001, 10001, 10001)
    left = Entry(uuid="GPU-0", knob=Knob.POWER, owner=owner, found=650.0, ours=(450.0,))
    kept = settle(None, left, None)
    say("ready" if (kept.ending.value, "is not seen" in kept.why) == ("kept", True) else kept)
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to hide processes")
@pytest.mark.parametrize("hidepid", [1, 2])
def test_a_process_that_proc_hides_is_not_taken_for_dead(two: Simulation, hidepid: int) -> None:
    with container(two, HIDDEN.format(hidepid)):
        pass


def test_a_process_that_took_over_is_not_disturbed(two: Simulation) -> None:
    """The journal was taken away from under a trainer, and another has begun."""
    with trainer(two, HOLD.format(index=0)) as other:
        (path,) = two.journal.glob("*.power.json")
        theirs = path.read_bytes()
        path.unlink()
        with (  # noqa: PT031 - the whole block is what warns
            pytest.warns(RuntimeWarning, match=f"process {other.pid} controls the GPU now"),
            PowerLimit(visible_gpus()[0]).at(watts=400) as limit,
        ):
            path.write_bytes(theirs)
            assert limit.look().standing is Standing.FOREIGN
        assert path.read_bytes() == theirs
        assert limit_w() == 400


def test_the_life_of_processes() -> None:
    me = Owner.current()
    assert me.life() is Life.ALIVE
    assert replace(me, start_ticks=me.start_ticks + 1).life() is Life.DEAD
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert replace(me, pid=child).life() is Life.DEAD, "a zombie is dead"
    os.waitpid(child, 0)
