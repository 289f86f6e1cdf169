"""Locked clocks: only where somebody answers for what cannot be read; unlocked again whatever happens."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pynvml
import pytest
from controlling import WITHIN_S, handle, journal_of, seconds_until, trainer, watchdogs

from energy_plugins import visible_gpus
from energy_plugins.control import DirectNvml, LockedClocks, Standing
from energy_plugins.control.journal import Journal
from energy_plugins.control.nvml import Nvml
from energy_plugins.control.restore import Ending, replay
from energy_plugins.errors import ControlError, RefusedError
from energy_plugins.testing import Ignored, Simulation

Simulated = Callable[..., Simulation]
HOLD = """
with LockedClocks(gpus[0], assume_unlocked=True).at(mhz=1200):
    say("ready")
    time.sleep(60)
"""


def clock_mhz(simulation: Simulation) -> int:
    """Return the clock of a GPU that works."""
    simulation.gpus[0].launch(ops=2e14)
    time.sleep(0.15)  # until the driver has refreshed what it says
    with handle() as gpu:
        mhz = int(pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM))
    simulation.gpus[0].synchronize()
    return mhz


def test_clocks_are_locked_and_unlocked(simulation: Simulation) -> None:
    free_mhz = clock_mhz(simulation)
    with LockedClocks(visible_gpus()[0], assume_unlocked=True).at(mhz=1200) as clocks:
        assert (clocks.back_end, clocks.check()) == ("NVML", Standing.HELD)
        assert clock_mhz(simulation) == 1200
        clocks.set(900)
        assert clock_mhz(simulation) == 900
    assert clock_mhz(simulation) == free_mhz
    assert journal_of(simulation) == []
    assert clocks.restored is not None
    assert clocks.restored.ending is Ending.RESTORED


def test_without_an_assertion_they_are_advice(simulation: Simulation) -> None:
    gpu = visible_gpus()[0]
    with LockedClocks(gpu).at(mhz=1200) as clocks:
        assert clocks.check() is Standing.ADVISED
        clock_mhz(simulation)
        time.sleep(0.4)
        clock_mhz(simulation)
        assert clocks.obeyed() is None
        assert "NVML does not tell" in clocks.status.why
    strict = LockedClocks(gpu, back_ends=(DirectNvml(),))
    with pytest.raises(RefusedError, match="NVML does not tell") as caught, strict.at(mhz=1200):
        pass
    assert "assume_unlocked=True" in caught.value.remedy
    assert (journal_of(simulation), watchdogs(os.getpid())) == ([], [])


@pytest.mark.parametrize("mhz", [0, -5, 1981, 100_000])
def test_out_of_range(simulation: Simulation, mhz: int) -> None:
    with pytest.raises(ControlError, match="SM clocks up to"), LockedClocks(visible_gpus()[0]).at(mhz=mhz):
        pass
    assert journal_of(simulation) == []


def test_whether_the_gpu_keeps_to_it_is_seen_at_work(simulation: Simulation) -> None:
    with LockedClocks(visible_gpus()[0], assume_unlocked=True, look_every_s=0.05).at(mhz=1200) as clocks:
        time.sleep(0.4)
        assert clocks.obeyed() is None
        clock_mhz(simulation)
        assert clocks.obeyed() is True
        simulation.gpus[0].inject(Ignored("nvmlDeviceSetGpuLockedClocks"))
        clocks.set(900)
        time.sleep(0.4)
        clock_mhz(simulation)
        assert clocks.obeyed() is False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_trainer_leaves_no_lock(simulation: Simulation, number: signal.Signals) -> None:
    free_mhz = clock_mhz(simulation)
    with trainer(simulation, HOLD) as process:
        process.send_signal(number)
        process.wait()
        seconds_until(lambda: journal_of(simulation) == [], WITHIN_S)
    assert clock_mhz(simulation) == free_mhz


def test_what_the_journal_owns_needs_no_assertion(simulation: Simulation) -> None:
    """Whoever locked them is dead and was one of us: unlocking them is putting them back."""
    with trainer(simulation, HOLD) as process:
        (watchdog,) = watchdogs(process.pid)
        os.kill(watchdog, signal.SIGKILL)
        process.kill()
        process.wait()
    with LockedClocks(visible_gpus()[0]).at(mhz=900) as clocks:
        assert clocks.check() is Standing.HELD
        assert clock_mhz(simulation) == 900
    with Journal(simulation.journal) as journal, Nvml(simulation.nvml_path) as nvml:
        assert list(replay(journal, nvml.card)) == []
