"""Which process changed a GPU, told apart from later ones of the same number, other boots and other containers."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

_INITIAL_PID_NAMESPACE = 0xEFFFFFFC
"""PROC_PID_INIT_INO (include/linux/proc_ns.h): every process of the machine is seen from there."""


class Life(Enum):
    """What is known of a process."""

    ALIVE = "alive"
    DEAD = "dead"
    EARLIER_BOOT = "earlier boot"
    """It ran before this machine was last started: what it set is gone."""
    ELSEWHERE = "elsewhere"
    """It ran in a container whose processes are not seen from here."""


@dataclass(frozen=True)
class Owner:
    """A process: its number alone is used again, its number and the time of its start are not."""

    pid: int
    start_ticks: int
    """Clock ticks from boot to its start: field 22 of ``/proc/PID/stat`` (proc(5))."""
    boot_id: str
    pid_namespace: int

    @classmethod
    def current(cls) -> Owner:
        """Return this process. Raises OSError where ``/proc`` is not there."""
        pid = os.getpid()
        started = _started(pid)
        if started is None:
            raise OSError(f"/proc does not show this process ({pid})")
        return cls(pid, started, boot_id(), Path("/proc/self/ns/pid").stat().st_ino)

    def life(self) -> Life:
        """Say what became of it. Raises OSError where ``/proc`` is not there, or hides the process."""
        if self.boot_id != boot_id():
            return Life.EARLIER_BOOT
        here = Path("/proc/self/ns/pid").stat().st_ino
        if self.pid_namespace != here:
            ended = here == _INITIAL_PID_NAMESPACE and not _may_be_populated(self.pid_namespace)
            return Life.DEAD if ended else Life.ELSEWHERE
        return Life.ALIVE if _started(self.pid) == self.start_ticks else Life.DEAD


def boot_id() -> str:
    """Return what the kernel calls the time since this machine was started."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def is_stopped(pid: int) -> bool:
    """Whether a process is there and does nothing until it is continued or traced on. Raises OSError."""
    fields = _fields(pid)
    return fields is not None and fields[0] in {"T", "t"}


def _started(pid: int) -> int | None:
    """Return when a process started, None if it has ended, whether or not its parent has heard of it."""
    fields = _fields(pid)
    return None if fields is None or fields[0] in {"Z", "X"} else int(fields[19])


def _fields(pid: int) -> list[str] | None:
    """Return the fields of ``/proc/PID/stat`` from its state on (proc(5)), None if there is no such process."""
    try:
        # The name stands in parentheses and may hold any character; the state is the first field after it.
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        if _exists(pid):
            raise PermissionError(f"/proc does not show process {pid}, which is there") from None
        return None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _may_be_populated(namespace: int) -> bool:
    """Whether a process may be in a pid namespace, seen from the initial one. Raises OSError where /proc hides any."""
    Path("/proc/1/status").read_bytes()  # hidden from whoever does not see all processes (hidepid, proc(5))
    for name in os.listdir("/proc"):  # noqa: PTH208 - names are enough
        if not name.isdecimal():
            continue
        process = Path("/proc", name)
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            try:
                found = (process / "ns/pid").stat().st_ino == namespace
            except PermissionError:
                found = _is_nested(process)
            if found:
                return True
    return False


def _is_nested(process: Path) -> bool:
    """Whether a process is in a namespace below ours: it has a number in each of them."""
    status = (process / "status").read_text(errors="replace")
    numbers = next((line for line in status.splitlines() if line.startswith("NSpid:")), "")
    return len(numbers.split()) != 2
