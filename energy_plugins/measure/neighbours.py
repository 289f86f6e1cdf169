"""Whose joules: which other processes compute on the GPUs that are measured.

The driver is asked from a thread of its own, which is all that waits if it hangs: at the start, every minute, and at
the end. A process that came and went in between is not seen. Where numbers of processes are hidden, as in containers,
the answer is "unknown", never "nobody".
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pynvml

from energy_plugins.measure.devices import shut_down_after
from energy_plugins.measure.drivers import Drivers
from energy_plugins.measure.report_parts import Company, Others, ProcessInfo

LOOK_PERIOD_S = 60.0
"""Between looks; each costs about 4.5 ms of CPU on an H200."""
_JOIN_S = 0.3


@dataclass(frozen=True)
class Look:
    """What the driver listed on one GPU, at one time or at several."""

    ours: bool = False
    """Whether a process of ours was listed: then the driver speaks of the processes that we see."""
    strangers: frozenset[ProcessInfo] = frozenset()
    hidden: bool = False
    """Whether it listed a process that is not visible here."""
    failure: str = ""
    """Why it listed nothing."""

    def and_then(self, later: Look) -> Look:
        """Return both looks as one."""
        return Look(
            self.ours or later.ours,
            self.strangers | later.strangers,
            self.hidden or later.hidden,
            self.failure or later.failure,
        )


def sort_out(pids: Sequence[int], own_pid: int, proc: Path = Drivers.proc) -> Look:
    """Tell the processes of ours, ``own_pid`` and its descendants, from strangers and from those not visible here."""
    look = Look()
    for pid in pids:
        lineage = _lineage(pid, proc)
        if own_pid in lineage:
            look = look.and_then(Look(ours=True))
        elif lineage:
            look = look.and_then(Look(strangers=frozenset({ProcessInfo(pid=pid, name=_name(pid, proc))})))
        else:
            look = look.and_then(Look(hidden=True))
    return look


def judge(look: Look | None, *, computing: bool, sees_all: bool) -> Others:
    """Say who else was there. ``computing``: we surely computed on it; ``sees_all``: no process is hidden from us."""
    if look is None:
        return Others()
    if not look.ours and (computing or not sees_all) and not look.failure:
        return Others(reason="the driver lists no process of ours; processes are hidden here, as in a container")
    if look.strangers and (look.ours or sees_all):
        found = tuple(sorted(look.strangers, key=lambda process: process.pid))
        return Others(company=Company.SOME, processes=found, reason="")
    if look.failure:
        return Others(reason=f"the driver did not always say who computes on it: {look.failure}")
    if look.hidden:
        return Others(reason="the driver lists processes that are not visible here, as from within a container")
    return Others(company=Company.NONE, reason="")


def look_at(uuids: Sequence[str], proc: Path = Drivers.proc) -> dict[str, Look]:
    """Ask the driver, through nvidia-ml-py, who computes on each GPU."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return dict.fromkeys(uuids, Look(failure=str(error)))
    with shut_down_after():
        return {uuid: _look_at_one(uuid, proc) for uuid in uuids}


def sees_all_processes(proc: Path = Drivers.proc) -> bool:
    """Tell whether this is the initial pid namespace, with nothing hidden: only there the kernel's threads show."""
    return _name(2, proc) == "kthreadd"


class Neighbours:
    """The processes on the GPUs of one run; nothing here raises."""

    def __init__(self, uuids: Sequence[str], drivers: Drivers) -> None:
        self.cpu_s = 0.0
        """CPU time the looks took."""
        self.computing = False
        """Whether this process surely computes on them itself; written by the run."""
        self._uuids = tuple(uuids)
        self._clock = drivers.clock
        self._proc = drivers.proc
        self._sees_all = sees_all_processes(drivers.proc)
        self._seen: Mapping[str, Look] = {}
        self._looked_ns = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Begin to look: on a thread, if time passes by itself."""
        if self._clock.threaded and self._uuids:
            self._thread = threading.Thread(target=self._look_now_and_then, name="energy-neighbours", daemon=True)
            self._thread.start()
        else:
            self._look()

    def tick(self, now_ns: int) -> None:
        """Look again in virtual time, if it is time to."""
        if self._thread is None and now_ns - self._looked_ns >= LOOK_PERIOD_S * 1e9:
            self._look()

    def end(self) -> None:
        """Have the last look begin; it is not waited for."""
        self._ended.set()
        if self._thread is None:
            self._look()

    def join(self) -> None:
        """Wait for the last look, but no longer than a moment: the driver may hang."""
        if self._thread is not None:
            self._thread.join(_JOIN_S)

    def others(self, uuid: str) -> Others:
        """Return who else computed on a GPU."""
        return judge(self._seen.get(uuid), computing=self.computing, sees_all=self._sees_all)

    def warnings(self) -> list[str]:
        """Return a sentence for each stranger seen so far."""
        return [
            f"another process (pid {process.pid}, {process.name}) used GPU {uuid} during the run: "
            "its joules are in these numbers"
            for uuid in self._uuids
            for process in self.others(uuid).processes
        ]

    def _look_now_and_then(self) -> None:
        self._look()
        while not self._ended.wait(LOOK_PERIOD_S):
            self._look()
        self._look()

    def _look(self) -> None:
        if not self._uuids:
            return  # a driver that hangs, for one, is not asked about nothing
        began_s = time.thread_time()
        now = look_at(self._uuids, self._proc)
        self._seen = {uuid: self._seen.get(uuid, Look()).and_then(look) for uuid, look in now.items()}
        self._looked_ns = self._clock.now_ns()
        self.cpu_s += time.thread_time() - began_s


def _look_at_one(uuid: str, proc: Path) -> Look:
    try:
        gpu = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        try:
            listed = pynvml.nvmlDeviceGetComputeRunningProcesses_v3(gpu)
        except pynvml.NVMLError_FunctionNotFound:
            listed = pynvml.nvmlDeviceGetComputeRunningProcesses_v2(gpu)  # drivers before 510
    except pynvml.NVMLError as error:
        return Look(failure=str(error))
    return sort_out([process.pid for process in listed], os.getpid(), proc)


def _lineage(pid: int, proc: Path) -> set[int]:
    """Return a process and its ancestors, nothing if it is not visible here."""
    line: set[int] = set()
    while pid > 0 and pid not in line:
        try:
            # The name stands in parentheses and may hold any character; the parent is the second field after it.
            fields = (proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
            parent = int(fields[1])
        except (OSError, ValueError, IndexError):
            return line
        line.add(pid)
        pid = parent
    return line


def _name(pid: int, proc: Path) -> str:
    try:
        return (proc / str(pid) / "comm").read_text(errors="replace").strip()
    except OSError:
        return "?"
