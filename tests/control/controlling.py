"""Trainers as real processes, and the GPU seen from outside of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pynvml

from energy_plugins.control.journal import Journal
from energy_plugins.control.owner import Owner, boot_id
from energy_plugins.testing import Simulation

FOUND_W = 650.0
"""What an operator has set before: neither the default, nor the highest."""
SET_W = 450.0
WITHIN_S = 2.0
DEAD = Owner(pid=2**22 + 1, start_ticks=1, boot_id=boot_id(), pid_namespace=Path("/proc/self/ns/pid").stat().st_ino)
"""No process has a number as high (PID_MAX_LIMIT, include/linux/threads.h)."""
PATIENCE_S = 30.0

PREAMBLE = f"""
import os, sys, time, signal
from energy_plugins import visible_gpus
from energy_plugins.control import PowerLimit, LockedClocks
gpus = visible_gpus()
def say(word): print(word, flush=True)
SET_W = {SET_W}
"""


@contextmanager
def handle(index: int = 0) -> Iterator[object]:
    """Give nvidia-ml-py's handle of a simulated GPU, and leave its library as often open as it was."""
    pynvml.nvmlInit()
    try:
        yield pynvml.nvmlDeviceGetHandleByIndex(index)
    finally:
        pynvml.nvmlShutdown()


def limit_w(index: int = 0) -> float:
    """Return the limit that a GPU is asked to keep."""
    with handle(index) as gpu:
        return float(pynvml.nvmlDeviceGetPowerManagementLimit(gpu)) / 1e3


def operator_sets(power_w: float, index: int = 0) -> None:
    """Set a limit as somebody does who knows nothing of us."""
    with handle(index) as gpu:
        pynvml.nvmlDeviceSetPowerManagementLimit(gpu, round(power_w * 1e3))


def seconds_until(condition: Callable[[], bool], within_s: float = PATIENCE_S) -> float:
    """Wait until something is so, and return how long that took; fail when it takes longer than ``within_s``."""
    began_s = time.monotonic()
    while not condition():
        assert time.monotonic() - began_s < within_s, f"it did not come to be within {within_s} s"
        time.sleep(0.005)
    return time.monotonic() - began_s


@contextmanager
def trainer(simulation: Simulation, body: str, *, ready: str = "ready") -> Iterator[subprocess.Popen[str]]:
    """Run ``body`` in a process of its own, in a process group of its own, from when it says that it is ready."""
    with subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + body],
        env=simulation.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as process:
        try:
            assert process.stdout is not None
            word = process.stdout.readline().strip()
            assert word == ready, (word, process.stderr.read() if process.stderr and not word else "")
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def journal_of(simulation: Simulation) -> list[str]:
    """Return the UUIDs that have entries in the journal."""
    with Journal(simulation.journal) as journal:
        return [uuid for uuid, _ in journal.names()]


def watchdogs(of_pid: int) -> list[int]:
    """Return the watchdogs of a process, but for those of simulations that are over."""
    found = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0") if folder.name.isdecimal() else []
            is_one = b"-S" in words and str(of_pid).encode() in words and b"control.watchdog" in b" ".join(words)
            journals = [Path(word.decode()) for word in words if word.endswith(b"journal")]
            if is_one and any(journal.is_dir() for journal in journals):
                found.append(int(folder.name))
    return found


def is_replaced(watchdog: int, of_pid: int) -> bool:
    """Tell whether another watchdog has taken its place, and watches."""
    others = watchdogs(of_pid)
    # The process that starts one looks like it, but is the owner's child, and there until the other watches.
    return len(others) == 1 and others != [watchdog] and _parent(others[0]) != of_pid


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1
