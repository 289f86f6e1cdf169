"""The trainer's side of its watchdog: one for all that a process controls, started before the first change."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from energy_plugins.control.owner import Owner, is_stopped
from energy_plugins.control.watchdog import READY
from energy_plugins.errors import RefusedError

_ENDS_MS: Final = 200
"""How long a watchdog that is killed may take to be gone: some milliseconds."""
_ROOT = Path(__file__).resolve().parents[2]
"""What this package was imported from: the watchdog's code is the trainer's."""
# Behind the standard library, so that nothing installed stands for a module of it.
_RUN = (
    "import sys; sys.path.append(sys.argv[1]); from energy_plugins.control.watchdog import main; "
    "sys.exit(main(sys.argv[2:]))"
)
_PATIENCE_S = 20.0
"""For an interpreter to start on a busy machine, and a driver to wake."""


class Watchdog:
    """A process that will put back what this one leaves in the journal ``folder``, if it ends without doing so."""

    def __init__(self, folder: Path, library: str) -> None:
        """Start it and wait until it watches. Raises RefusedError."""
        began_s = time.monotonic()
        try:
            owner = Owner.current()
            command = [sys.executable, "-I", "-S", "-c", _RUN, str(_ROOT)]
            command += [str(owner.pid), str(owner.start_ticks), str(folder), library]
            with subprocess.Popen(
                command,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # its own session: what kills the trainer's group does not reach it
            ) as starter:
                assert starter.stdout is not None  # noqa: S101 - a pipe was asked for
                answer = _line(starter.stdout.fileno(), began_s + _PATIENCE_S)
                starter.kill()  # the watchdog is its child, and has left it; one that hangs must not be waited for
            word, _, pid = answer.partition(" ")
            if word != READY:
                raise RefusedError(_failed(answer or "it ended without a word"), remedy="see what the message names")
            self._pid = int(pid)
            self._pidfd = os.pidfd_open(self._pid)
        except (OSError, ValueError, TypeError) as error:
            raise RefusedError(_failed(str(error)), remedy="Linux 5.3 or newer with /proc, and a Python") from error
        self._poll = select.poll()
        self._poll.register(self._pidfd, select.POLLIN)

    def alive(self) -> bool:
        """Whether it still watches: one that somebody has stopped does not."""
        try:
            stopped = is_stopped(self._pid)
        except OSError:  # not shown to us
            stopped = False
        return not stopped and not self._poll.poll(0)

    def end(self) -> None:
        """End it: nothing is left to put back."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._poll.poll(_ENDS_MS)
        os.close(self._pidfd)


class Guard:
    """The watchdog that all leases of this process with one journal share."""

    def __init__(self, folder: Path, library: str) -> None:
        self._place = (folder, library)
        self._mutex = threading.Lock()  # guards what follows
        self._users = 0
        self._watchdog: Watchdog | None = None

    def enter(self) -> None:
        """Have a watchdog from now on, until as many calls of `leave`. Raises RefusedError."""
        with self._mutex:
            self._start_if_dead()
            self._users += 1

    def leave(self) -> None:
        """Have none any more, if nobody else here wants it."""
        with self._mutex:
            self._users -= 1
            if self._users == 0 and self._watchdog is not None:
                self._watchdog.end()
                self._watchdog = None

    def keep(self) -> None:
        """Start another watchdog if somebody has killed this one. Raises RefusedError."""
        with self._mutex:
            self._start_if_dead()

    def _start_if_dead(self) -> None:
        if self._watchdog is not None and self._watchdog.alive():
            return
        if self._watchdog is not None:
            self._watchdog.end()
            self._watchdog = None
        self._watchdog = Watchdog(*self._place)


_guards: dict[tuple[Path, str], Guard] = {}
os.register_at_fork(after_in_child=_guards.clear)  # they watch the parent


def guard_of(folder: Path, library: str) -> Guard:
    """Return this process's guard for a journal and an NVML."""
    return _guards.setdefault((folder, library), Guard(folder, library))


def _line(pipe: int, end_s: float) -> str:
    received = b""
    waiting = select.poll()
    waiting.register(pipe, select.POLLIN)
    while not received.endswith(b"\n"):
        left_s = end_s - time.monotonic()
        if left_s <= 0 or not waiting.poll(left_s * 1e3):
            return f"it did not answer within {_PATIENCE_S:g} s"
        part = os.read(pipe, 1 << 12)
        if not part:
            break
        received += part
    return received.decode(errors="replace").strip()


def _failed(why: str) -> str:
    return f"the watchdog, which puts a GPU back when this process dies, cannot be started: {why}"
