"""Which trials measure the same GPU at the same time: their joules cannot be told apart.

Each trial holds a locked file for each of its GPUs, in a folder of this user's on this node, whatever study, process
or thread it belongs to; the lock ends with the process, however that ends. A trial that finds another one there writes
a line into that one's file, so that both know, even of a trial that came and went between two looks.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from energy_plugins.measure.private_file import state_folder

_FOLDER: Final = "trials"


class Company:
    """The files of one trial. Raises OSError where they cannot be written; RuntimeError without a home folder."""

    def __init__(self, gpus: Sequence[str]) -> None:
        self._folder = state_folder() / _FOLDER
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._key = uuid.uuid4().hex
        self._seen: set[str] = set()
        self._gpus = tuple(gpus)
        self._held = [(path, _locked(path)) for path in map(self._path, self._gpus)]

    def look(self) -> int:
        """Return how many other trials have been seen on these GPUs since this one began."""
        for path, descriptor in self._held:
            self._seen.update(os.pread(descriptor, 1 << 16, 0).decode("ascii", "replace").split())
            gpu = path.name.partition(".")[0]
            for other in self._folder.glob(f"{gpu}.*"):
                if other != path and other.suffix[1:] not in self._seen and self._tell(other):
                    self._seen.add(other.suffix[1:])
        return len(self._seen)

    def close(self) -> None:
        """Give the files up."""
        held, self._held = self._held, []
        for path, descriptor in held:
            path.unlink(missing_ok=True)
            os.close(descriptor)

    def _path(self, gpu: str) -> Path:
        return self._folder / f"{gpu.replace('/', '_').replace('.', '_')}.{self._key}"

    def _tell(self, other: Path) -> bool:
        """Tell another trial of this one, and whether it is there: the file of one that was killed is removed."""
        try:
            descriptor = os.open(other, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.write(descriptor, f"{self._key}\n".encode())
            return True
        else:
            other.unlink(missing_ok=True)
            return False
        finally:
            os.close(descriptor)


def _locked(path: Path) -> int:
    """Make a file that is locked from the moment others see it, and return its descriptor."""
    hidden = path.with_name(f".{path.name}")
    descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    hidden.rename(path)
    return descriptor
