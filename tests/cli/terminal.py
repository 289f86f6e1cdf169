"""A command at a terminal of its own, as in a window: what is typed reaches its whole process group."""

from __future__ import annotations

import os
import pty
import select
import signal
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from commands import PATIENCE_S


class Terminal:
    """The keyboard and the screen of a process."""

    def __init__(self, pid: int, master: int) -> None:
        self.pid = pid
        self.screen = ""
        self._master = master

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._master, text.encode())

    def wait_for(self, text: str, times: int = 1) -> None:
        """Read the screen until a text stands on it."""
        end_s = time.monotonic() + PATIENCE_S
        while self.screen.count(text) < times:
            assert time.monotonic() < end_s, f"{text!r} never came; the screen: {self.screen}"
            self._read(0.1)

    def exit_code(self) -> int:
        """Read to the end and return the exit code."""
        end_s = time.monotonic() + PATIENCE_S
        while True:
            self._read(0.05)
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self._read(0.05)
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < end_s, f"it does not end; the screen: {self.screen}"

    def settings(self) -> list[object]:
        """Return the modes of the terminal."""
        return list(termios.tcgetattr(self._master))

    def _read(self, within_s: float) -> None:
        while select.select([self._master], [], [], within_s)[0]:
            try:
                self.screen += os.read(self._master, 1 << 16).decode()
            except OSError:  # nobody has it open any more
                return


@contextmanager
def at_terminal(arguments: Sequence[str], environment: Mapping[str, str]) -> Iterator[Terminal]:
    """Start a program as the leader of a session with a terminal."""
    pid, master = pty.fork()
    if pid == 0:
        try:
            os.execve(arguments[0], list(arguments), dict(environment))  # noqa: S606 - a shell would get the signals, too
        finally:
            os._exit(99)
    terminal = Terminal(pid, master)
    try:
        yield terminal
    finally:
        if terminal.pid:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(master)
