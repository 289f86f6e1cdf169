"""The journal of changed GPUs: written before the first change, removed after the last one was undone.

A folder of this node with one small file for each knob of a GPU that is not as it was found. Only its owner may look
into it or write it, which is checked whenever it is opened. A file is replaced as a whole and reaches the disk before
the GPU is touched, so whoever reads it (the watchdog, the next owner, ``doctor --restore``) sees all of it or none.
"""

from __future__ import annotations

import fcntl
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from energy_plugins.control.entry import Entry, Knob, is_gpu
from energy_plugins.errors import JournalError

JOURNAL_VARIABLE = "ENERGY_CONTROL_JOURNAL"

_MOST_BYTES = 1 << 14
_PATIENCE_S = 5.0
_NAP_S = 0.01
_NOT_FOR_OTHERS = 0o077
_mutexes: dict[str, threading.Lock] = {}
"""By UUID, between threads of this process, which the locks of the files do not tell apart."""
os.register_at_fork(after_in_child=_mutexes.clear)  # a thread that held one is not there in a forked child


def journal_folder() -> Path:
    """Return where the journal of this user is on this node: not in the home, which nodes may share."""
    named = os.environ.get(JOURNAL_VARIABLE)
    if named:
        return Path(named)
    if os.geteuid() == 0:
        return Path("/run/energy-plugins-journal")
    return Path(f"/var/tmp/energy-plugins-journal-{os.geteuid()}")  # noqa: S108 - its owner and mode are checked


class Journal:
    """The journal in a folder, which is made if it is not there; to be closed."""

    def __init__(self, folder: Path, *, create: bool = True) -> None:
        """Open it.

        Raises:
            JournalError: It is somebody else's, or others may look into it, or it cannot be made.
            FileNotFoundError: It is not there, and ``create`` is False.
        """
        self.folder = folder
        self._create = create
        try:
            if create:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not create:
                raise
            raise JournalError(f"the journal {folder} cannot be opened: {error.strerror}") from error
        try:
            _check(os.fstat(self._folder), str(folder), kind=stat.S_IFDIR)
        except JournalError:
            self.close()
            raise

    def follow(self) -> None:
        """Go on in the folder that has this name now: somebody may have removed the one that was opened.

        Raises:
            JournalError: As the constructor.
            FileNotFoundError: As the constructor.
        """
        with suppress(FileNotFoundError):
            now, opened = os.lstat(self.folder), os.fstat(self._folder)
            if (now.st_dev, now.st_ino) == (opened.st_dev, opened.st_ino):
                return
        with Journal(self.folder, create=self._create) as fresh:
            os.dup2(fresh._folder, self._folder, inheritable=False)

    def close(self) -> None:
        """Close the folder."""
        os.close(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def alone(self, uuid: str) -> Iterator[None]:
        """Keep others from changing entries of a GPU inside the block, for a moment.

        A record lock, not flock(2): forked children, such as the workers of a data loader, inherit the latter and
        would hold it for as long as they outlive a trainer that was killed.

        Raises:
            JournalError: Somebody else has kept it for 5 s.
        """
        end_s = time.monotonic() + _PATIENCE_S
        mutex = _mutexes.setdefault(uuid, threading.Lock())
        if not mutex.acquire(timeout=_PATIENCE_S):
            raise JournalError(f"another thread holds the journal {self.folder}")
        try:
            try:
                self.follow()
                lock = self._open(f"{uuid}.lock", os.O_RDWR | os.O_CREAT, mend=True)
            except OSError as error:
                raise JournalError(f"{self.folder / uuid}.lock cannot be opened: {error.strerror}") from error
            try:
                _lock(lock, end_s, f"{self.folder / uuid}.lock")
                yield
            finally:
                os.close(lock)
        finally:
            mutex.release()

    def read(self, uuid: str, knob: Knob) -> Entry | None:
        """Return the entry of a knob, None if there is none. Raises JournalError."""
        path = str(self.folder / _name(uuid, knob))
        try:
            file = self._open(_name(uuid, knob), os.O_RDONLY)
            try:
                entry = Entry.read(os.read(file, _MOST_BYTES), path)
            finally:
                os.close(file)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise JournalError(f"{path} cannot be read: {error.strerror}") from error
        if (entry.uuid, entry.knob) != (uuid, knob):
            raise JournalError(f"{path} speaks of another GPU or knob")
        return entry

    def write(self, entry: Entry) -> None:
        """Put an entry in place of what is there, on the disk. Raises JournalError."""
        name = _name(entry.uuid, entry.knob)
        try:
            with suppress(FileNotFoundError):
                os.unlink(f".{name}", dir_fd=self._folder)  # of a writer that died
            file = self._open(f".{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            with os.fdopen(file, "w", encoding="ascii") as out:
                out.write(entry.text())
                out.flush()
                os.fsync(file)
            os.rename(f".{name}", name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            os.fsync(self._folder)
        except OSError as error:
            raise JournalError(f"the journal {self.folder} cannot be written: {error.strerror}") from error

    def remove(self, entry: Entry) -> None:
        """Take an entry out. Raises JournalError."""
        try:
            os.unlink(_name(entry.uuid, entry.knob), dir_fd=self._folder)
            os.fsync(self._folder)
        except FileNotFoundError:
            return
        except OSError as error:
            raise JournalError(f"the journal {self.folder} cannot be written: {error.strerror}") from error

    def names(self) -> list[tuple[str, Knob]]:
        """Return which knobs of which GPUs have entries."""
        files = sorted(os.listdir(self._folder))  # noqa: PTH208 - of the folder that was checked, not of its name
        parts = [file.partition(".") for file in files]
        knobs = {f"{knob.value}.json": knob for knob in Knob}
        return [(uuid, knobs[rest]) for uuid, _, rest in parts if is_gpu(uuid) and rest in knobs]

    def _open(self, name: str, flags: int, *, mend: bool = False) -> int:
        """Open a file of the folder. A file of ours that says nothing is closed to others again (``mend``)."""
        # Not to be waited for, should it be a pipe.
        file = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=self._folder)
        try:
            if mend and os.fstat(file).st_uid == os.geteuid():
                os.fchmod(file, 0o600)
            found = os.fstat(file)
            _check(found, str(self.folder / name), kind=stat.S_IFREG)
        except JournalError:
            os.close(file)
            raise
        return file


def _name(uuid: str, knob: Knob) -> str:
    return f"{uuid}.{knob.value}.json"


def _check(found: os.stat_result, path: str, *, kind: int) -> None:
    if found.st_uid != os.geteuid():
        raise JournalError(f"{path} belongs to user {found.st_uid}, not to {os.geteuid()}")
    if found.st_mode & _NOT_FOR_OTHERS:
        raise JournalError(f"{path} is open to others (mode {stat.S_IMODE(found.st_mode):04o}): it is not used")
    if stat.S_IFMT(found.st_mode) != kind or (kind == stat.S_IFREG and found.st_size > _MOST_BYTES):
        raise JournalError(f"{path} is no part of a journal")


def _lock(file: int, end_s: float, path: str) -> None:
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if time.monotonic() > end_s:
                raise JournalError(f"another process holds {path}") from error
            time.sleep(_NAP_S)
        else:
            return
