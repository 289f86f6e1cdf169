"""The process that outlives a trainer and puts back what it found. Standard library and NVML alone.

Started by `Watchdog` in a bare interpreter (``python -I -S``), never by a bare fork, so it holds no handle of the
trainer's. It waits on a pidfd: unlike the end of a pipe, that does not wait for forked workers of a data loader.
"""

from __future__ import annotations

import os
import select
import signal
import syslog
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from energy_plugins.control.journal import Journal
from energy_plugins.control.nvml import Nvml
from energy_plugins.control.owner import Life, Owner, boot_id
from energy_plugins.control.restore import Ending, Restored, replay
from energy_plugins.errors import EnergyError, JournalError

READY = "ready"
_DEAF_TO = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""What ends a job is sent to all of its processes: this one must outlive the trainer by a moment."""
_STAYS = {Ending.KEPT, Ending.IN_USE}
_TRY_FOR_S = 30.0
_TRY_EVERY_S = 0.2
_LOOK_EVERY_S = 2.0
"""Between looks whether the trainer, which lives, has left something that could not be put back."""


def main(arguments: Sequence[str]) -> int:
    """Watch the process of this number and start (clock ticks), with this journal and this NVML, until it ends."""
    pid, start_ticks, folder, library = int(arguments[0]), int(arguments[1]), arguments[2], arguments[3]
    for number in _DEAF_TO:
        signal.signal(number, signal.SIG_IGN)
    if os.fork():
        # Nobody's child: whoever kills a trainer's children, as launchers do, does not find it, and no trainer has to
        # reap it. This is a fork of the bare interpreter, before anything is opened.
        os._exit(0)
    try:
        owner = Owner(pid, start_ticks, boot_id(), Path("/proc/self/ns/pid").stat().st_ino)
        trainer = _handle_of(owner)
        # Initialised now: a driver that nobody uses takes seconds to wake.
        nvml, journal = Nvml(library), Journal(Path(folder), create=False)
    except (OSError, EnergyError) as error:
        _tell(f"{error}")
        return 1
    if not _tell(f"{READY} {os.getpid()}") and owner.life() is Life.ALIVE:
        return 1  # it has stopped waiting for us, and changes nothing
    _let_go_of_the_streams()
    if trainer is not None:
        ended = select.poll()
        ended.register(trainer, select.POLLIN)
        while not ended.poll(_LOOK_EVERY_S * 1e3):
            with suppress(EnergyError, OSError):
                _replayed(journal, nvml, pid)
    _put_back(journal, nvml, pid)
    return 0


def _handle_of(owner: Owner) -> int | None:
    """Return a pidfd, None if the process has ended: as it may when this is not its first watchdog."""
    try:
        handle = os.pidfd_open(owner.pid)
    except ProcessLookupError:
        return None
    return handle if owner.life() is Life.ALIVE else None  # once it is held, the number is not used again


def _put_back(journal: Journal, nvml: Nvml, pid: int) -> None:
    """Replay what the trainer left, again and again while some of it cannot be undone."""
    end_s = time.monotonic() + _TRY_FOR_S
    while True:
        kept = _replayed(journal, nvml, pid)
        if not kept:
            return
        if time.monotonic() > end_s:
            for one in kept:
                _log(f"process {pid} has ended, GPU {one.uuid} is not put back (doctor --restore does): {one.why}")
            return
        time.sleep(_TRY_EVERY_S)


def _replayed(journal: Journal, nvml: Nvml, pid: int) -> list[Restored]:
    """Replay what the trainer left, and return what stays."""
    with suppress(JournalError, FileNotFoundError):  # then what was opened is all there is
        journal.follow()
    restored = list(replay(journal, nvml.card, of_pid=pid))
    for one in restored:
        if one.ending not in _STAYS:
            _log(f"process {pid} has left GPU {one.uuid}: {one.why}")
    return [one for one in restored if one.ending in _STAYS]


def _log(text: str) -> None:
    syslog.syslog(syslog.LOG_WARNING, f"energy-plugins: {text}")


def _tell(line: str) -> bool:
    """Tell the trainer, and return whether it still listens."""
    try:
        os.write(1, f"{line}\n".encode())
    except OSError:
        return False
    return True


def _let_go_of_the_streams() -> None:
    """Whoever reads the trainer's output must not wait for this process."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nowhere, standard)
    os.close(nowhere)
