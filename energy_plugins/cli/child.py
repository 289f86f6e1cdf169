"""A command run as a child that keeps our terminal, our files and our signals, and whose end becomes our own.

The child stays in our process group, so that it may read the terminal and Ctrl-Z stops both. Signals that the terminal
sends reach it without us; those that a process sends to us are passed on, and tell apart by ``si_code`` (sigaction(2):
positive for what the kernel sends, zero or less for kill, sigqueue and the like).
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Sequence

PASSED_ON = frozenset(
    {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2},
)
"""What ends a command, and what schedulers warn it with."""
NOT_FOUND = 127
NOT_EXECUTABLE = 126
"""What shells answer (POSIX, "Exit Status for Commands")."""

_PYTHON_IGNORES = (signal.SIGPIPE, signal.SIGXFSZ)


class CommandError(Exception):
    """A command that could not be started; ``code`` is what a shell would answer."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def hold_signals() -> set[signal.Signals]:
    """Block what `wait` passes on, for good, and return the mask found.

    To be called before any thread is made: one that does not block a signal would take it, and the process would die.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, as some parents leave it, it would reap the child
    return {signal.Signals(one) for one in signal.pthread_sigmask(signal.SIG_BLOCK, {*PASSED_ON, signal.SIGCHLD})}


def held_signal() -> signal.Signals | None:
    """Return a signal that came since `hold_signals`, None if none did."""
    return next((one for one in sorted(PASSED_ON) if one in signal.sigpending()), None)


def find_command(name: str) -> None:
    """Raise CommandError if there is no program ``name`` that may be run."""
    if shutil.which(name) is not None:
        return
    if shutil.which(name, os.F_OK) is not None or (os.sep in name and os.access(name, os.F_OK)):
        raise CommandError(f"{name}: is not executable", NOT_EXECUTABLE)
    raise CommandError(f"{name}: command not found", NOT_FOUND)


def start(command: Sequence[str], mask: set[signal.Signals]) -> int:
    """Start ``command`` with the signal mask ``mask`` and return its pid; every file open for it stays open.

    Raises:
        CommandError: the system refuses to run it.
    """
    try:
        return os.posix_spawnp(command[0], list(command), os.environ, setsigmask=mask, setsigdef=_PYTHON_IGNORES)
    except FileNotFoundError as error:
        raise CommandError(f"{command[0]}: it, or its interpreter, is not there", NOT_FOUND) from error
    except OSError as error:
        raise CommandError(f"{command[0]}: {error.strerror}", NOT_EXECUTABLE) from error


def wait(pid: int) -> int:
    """Wait for the child's end, passing signals on; return its exit code, 128 + N if signal N ended it."""
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        came = signal.sigwaitinfo({*PASSED_ON, signal.SIGCHLD})
        if came.si_signo in PASSED_ON and came.si_code <= 0:
            _send(pid, came.si_signo)


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except PermissionError:
        return  # a program of another user, sudo for example, decides for itself whom it listens to
