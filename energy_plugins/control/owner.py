"""Which process changed a GPU, told apart from later ones of the same number, other boots and other containers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path


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
        """Say what became of it. Raises OSError where ``/proc`` is not there."""
        if self.boot_id != boot_id():
            return Life.EARLIER_BOOT
        if self.pid_namespace != Path("/proc/self/ns/pid").stat().st_ino:
            return Life.ELSEWHERE
        return Life.ALIVE if _started(self.pid) == self.start_ticks else Life.DEAD


def boot_id() -> str:
    """Return what the kernel calls the time since this machine was started."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _started(pid: int) -> int | None:
    """Return when a process started, None if it has ended, whether or not its parent has heard of it."""
    try:
        # The name stands in parentheses and may hold any character; the state is the first field after it.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in {"Z", "X"} else int(fields[19])
