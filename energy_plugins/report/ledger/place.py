"""Where a ledger is: a file of SQLite on a disk of this node, or a database server that somebody named."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from energy_plugins.errors import LedgerError
from energy_plugins.measure.private_file import state_folder

_MOUNTS: Final = Path("/proc/self/mountinfo")
_NETWORK: Final = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "9p", "afs", "coda", "ceph", "lustre", "gpfs", "beegfs"),
        *("glusterfs", "pvfs2", "orangefs", "ocfs2", "gfs2", "panfs", "wekafs", "vastnfs", "daos"),
        *("fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.ceph-fuse", "fuse.juicefs", "fuse.s3fs", "fuse.rclone"),
        *("fuse.gcsfuse", "fuse.dfuse", "fuse.beegfs", "fuse.davfs"),
    }
)
"""Types of file systems that several machines see, as mount(8) calls them. SQLite's locks are not kept there by all of
them, and its shared memory by none (https://www.sqlite.org/wal.html, "All processes ... on the same host")."""


def default_ledger() -> Path:
    """Return where this user's ledger is. Raises LedgerError if there is no home folder."""
    try:
        return state_folder() / "ledger.sqlite"
    except RuntimeError as error:
        raise LedgerError(f"there is no place for a ledger ({error}): set XDG_STATE_HOME, or give --url") from error


def refuse_network(path: Path, mounts: Path = _MOUNTS) -> None:
    """Raise LedgerError if ``path`` is on a file system that other machines see, too."""
    kind = file_system_of(path, mounts)
    if kind in _NETWORK:
        raise LedgerError(
            f"{path} is on a network file system ({kind}), where SQLite may lose what several processes write: set "
            "XDG_STATE_HOME to a folder on a disk of this node, or give --url of a file there or of a PostgreSQL server"
        )


def file_system_of(path: Path, mounts: Path = _MOUNTS) -> str:
    """Return the type of the file system that ``path`` is on or would be made on; empty if that cannot be told.

    ``mounts`` is in the format of ``/proc/PID/mountinfo`` (proc(5)).
    """
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    real = os.path.realpath(path)
    found = ("", "")
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) < 5 or not after:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(found[0]):  # of two on one point, the later covers the earlier
            found = point, after.split(" ")[0]
    return found[1]
