"""The spool as the ledger reads it: with suspicion, and with an eye on which runs go on and which were killed."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from energy_plugins.control.owner import Life, Owner
from energy_plugins.errors import LedgerError, ReportError
from energy_plugins.measure.ledger_entry import LedgerEntry, Status
from energy_plugins.measure.private_file import read_private
from energy_plugins.measure.spool import SUFFIX

_SILENT_AFTER_S: Final = 600.0
"""A run has a heartbeat every 6 s or so; one without for this long is silent, or killed with its machine."""
_LEFT_OVER_S: Final = 86400.0
"""Age of a file that was being written when its run was killed: by now nobody is writing it."""
FINAL: Final = frozenset({Status.FINISHED, Status.FAILED, Status.KILLED, Status.DISCARDED})
"""What a run does not come back from."""


@dataclass(frozen=True)
class Spooled:
    """What a file of the spool holds, or why it is passed over: one of the two is there."""

    path: Path
    entry: LedgerEntry | None = None
    trouble: str = ""


def read_spool(folder: Path, known: Collection[str] = ()) -> Iterator[Spooled]:
    """Yield what the files of a spool hold, one after the other, but for the runs ``known``.

    A folder that is not there is an empty one.

    Raises:
        LedgerError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            names = sorted(one.name for one in found if one.name.endswith(SUFFIX) and not one.name.startswith("."))
    except FileNotFoundError:
        return
    except OSError as error:
        raise LedgerError(f"cannot read the spool {folder}: {error.strerror}") from error
    for name in names:
        if name.removesuffix(SUFFIX) not in known and (spooled := _read(folder / name)) is not None:
            yield spooled


def remove_spooled(folder: Path, entries: Collection[LedgerEntry]) -> None:
    """Remove the files of runs that have ended, and what was left over by others that were killed while they wrote."""
    for entry in entries:
        if entry.status in FINAL:
            with suppress(OSError):
                (folder / f"{entry.run_id}{SUFFIX}").unlink()
    for path in folder.glob(".*"):
        with suppress(OSError):
            if time.time() - path.lstat().st_mtime > _LEFT_OVER_S:
                path.unlink()


def _read(path: Path) -> Spooled | None:
    """Return what a file holds; None if it has gone."""
    try:
        entry = _entry(path)
        if entry is not None and entry.status is Status.RUNNING and (status := _became(entry)) is not Status.RUNNING:
            # Its last word may have been written between our look at the file and that at the process.
            entry = _entry(path)
            if entry is not None and entry.status is Status.RUNNING:
                entry = replace(entry, status=status)
    except ReportError as error:
        return Spooled(path, trouble=str(error))
    except OSError as error:
        return Spooled(path, trouble=f"{path}: {error.strerror or error}")
    return None if entry is None else Spooled(path, entry)


def _entry(path: Path) -> LedgerEntry | None:
    data = read_private(path)
    if data is None:
        return None
    entry = LedgerEntry.decode(data, str(path))
    if path.name != f"{entry.run_id}{SUFFIX}":
        raise ReportError(f"{path} is of the run {entry.run_id}, whose file has another name")
    if entry.status in {Status.KILLED, Status.SILENT}:
        raise ReportError(f"{path} says that its run is {entry.status.value}, which no run says of itself")
    return entry


def _became(entry: LedgerEntry) -> Status:
    """Say what became of a run that has not said its last word."""
    silent = (datetime.now(UTC) - datetime.fromisoformat(entry.updated)).total_seconds() > _SILENT_AFTER_S
    process = entry.process
    try:
        life = Owner(process.pid, process.start_ticks, process.boot_id, process.pid_namespace).life()
    except OSError:
        life = Life.ELSEWHERE
    match life:
        case Life.ALIVE:
            return Status.RUNNING
        case Life.DEAD:
            return Status.KILLED
        case Life.EARLIER_BOOT if silent and entry.node == platform.node():
            return Status.KILLED
    # Another machine's, if homes are shared, or that of a container whose processes are not seen from here.
    return Status.SILENT if silent else Status.RUNNING
