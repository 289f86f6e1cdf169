"""The spool: a folder of this user's on this node, in which each run keeps one small file for the ledger to read.

Only its own run writes a file, always as a whole and beside the old one, so a reader sees one heartbeat or the next.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from energy_plugins.errors import ReportError
from energy_plugins.measure.ledger_entry import LedgerEntry, ProcessEntry
from energy_plugins.measure.private_file import replace_private, state_folder
from energy_plugins.measure.report_files import sync_folder

SUFFIX: Final = ".json"
WANTED_VARIABLE: Final = "ENERGY_REPORT_LEDGER"
PROJECT_VARIABLE: Final = "ENERGY_REPORT_PROJECT"
"""Keys of the configuration, which a meter that nobody configures reads here."""
INSIDE_VARIABLE: Final = "ENERGY_INSIDE_RUN"
"""The run that measures this process from outside."""
_NO: Final = frozenset({"0", "false", "no", "off"})
_YES: Final = frozenset({"1", "true", "yes", "on"})


def spool_folder() -> Path:
    """Return where the runs of this user keep their files. Raises RuntimeError if there is no home folder."""
    return state_folder() / "spool"


def is_wanted() -> bool:
    """Tell whether the environment lets runs be kept in the ledger.

    Raises:
        ValueError: it says neither yes nor no.
    """
    said = os.environ.get(WANTED_VARIABLE, "").strip().lower()
    if said in _NO:
        return False
    if not said or said in _YES:
        return True
    raise ValueError(f"{WANTED_VARIABLE} is {said!r}; expected true or false (or yes/no, on/off, 1/0)")


def write_entry(folder: Path, entry: LedgerEntry) -> None:
    """Put an entry into the spool in place of the run's earlier one, and wait until it is on the disk.

    Raises:
        ReportError: the folder belongs to somebody else.
        OSError: it cannot be written; the earlier entry is as it was.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if (owner := folder.stat().st_uid) != os.geteuid():
        raise ReportError(f"{folder} belongs to user {owner}, not to you")
    replace_private(folder / f"{entry.run_id}{SUFFIX}", entry.encode())
    sync_folder(folder)


def own_project() -> str:
    """Return what the project is called if nobody says: the folder of the git repository we are in, or else ours."""
    try:
        here = Path.cwd()
    except OSError:  # it has been removed
        return ""
    return next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), here).name


def own_process() -> ProcessEntry:
    """Return this process. Raises OSError where ``/proc`` is not there."""
    # The name stands in parentheses and may hold any character; the state, field 3, is the first after it.
    fields = Path("/proc/self/stat").read_text(errors="replace").rpartition(")")[2].split()
    return ProcessEntry(
        pid=os.getpid(),
        start_ticks=int(fields[19]),
        boot_id=Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
        pid_namespace=Path("/proc/self/ns/pid").stat().st_ino,
    )
