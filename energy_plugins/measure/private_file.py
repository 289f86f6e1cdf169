"""Small files of one user that are read with suspicion and replaced as a whole: what is remembered between runs."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from energy_plugins.errors import ReportError

_MOST_BYTES = 1 << 20


def cache_folder() -> Path:
    """Return where this package remembers things for this user. Raises RuntimeError if there is no home folder."""
    return _xdg_folder("XDG_CACHE_HOME", ".cache")


def state_folder() -> Path:
    """Return where this package keeps what must not be lost for this user. Raises RuntimeError if there is no home."""
    return _xdg_folder("XDG_STATE_HOME", ".local/state")


def _xdg_folder(variable: str, default: str) -> Path:
    named = os.environ.get(variable, "")
    # A relative path is to be ignored (XDG Base Directory Specification).
    folder = Path(named) if named.startswith("/") else Path.home() / default
    return folder / "energy-plugins"


def read_private(path: Path) -> bytes | None:
    """Return what a file holds that belongs to this user and that nobody else may write; None if there is none.

    Raises:
        ReportError: it is none such, or far too large.
        OSError: it cannot be read.
    """
    try:
        # Not to be waited for, should it be a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ReportError(f"{path} is no ordinary file")
        if found.st_uid != os.geteuid():
            raise ReportError(f"{path} belongs to user {found.st_uid}, not to you")
        if found.st_mode & 0o022:
            raise ReportError(f"{path} may be written by others: chmod 600 it, if what it says is yours")
        if found.st_size > _MOST_BYTES:
            raise ReportError(f"{path} is too large to be what it should be")
        return os.read(descriptor, _MOST_BYTES)
    finally:
        os.close(descriptor)


def replace_private(path: Path, text: str) -> None:
    """Put ``text`` in place of a file's content: a reader sees the old one or the new one. Raises OSError."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", dir=path.parent)  # for its owner's eyes only
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """Keep other processes of this user, such as other ranks, from changing a file at the same time. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
