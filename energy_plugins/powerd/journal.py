"""What was found on each GPU that is not as it was found: on the disk before the GPU is touched.

A file for each GPU, replaced as a whole, so whoever reads it sees all of it or none; removing one needs no room on the
disk, so a full one keeps nothing from being put back.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from energy_plugins.powerd.config import UUID

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SUFFIX = ".json"
_MOST_MW = 10**8


class BadEntry(Exception):  # noqa: N818 - an answer, not a failure
    """A file of the journal holds no entry."""


@dataclass(frozen=True)
class Entry:
    """A GPU that is not as it was found."""

    uuid: str
    boot_id: str
    found_mw: int
    ours_mw: tuple[int, ...]
    """What it may have from us: the limit set and, while it changes, the next one."""
    uid: int
    """For whom; a note for administrators, as is the next."""
    pid: int


class Journal:
    """The entries in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.boot_id = _BOOT_ID.read_text(encoding="ascii").strip()

    def open(self) -> None:
        """Make the folder if it is not there. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, entry: Entry) -> None:
        """Write an entry so that it survives whatever happens next. Raises OSError; then the former one is intact."""
        path = self._path(entry.uuid)
        fresh = path.with_suffix(".new")
        try:
            with fresh.open("w", encoding="ascii") as file:
                json.dump({"version": 1, **asdict(entry)}, file)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
            self._settle()
        except OSError:
            with suppress(OSError):
                fresh.unlink()
            raise

    def remove(self, uuid: str) -> None:
        """Forget an entry. Raises OSError."""
        self._path(uuid).unlink(missing_ok=True)
        self._settle()

    def uuids(self) -> list[str]:
        """Return the GPUs that have an entry, readable or not. Raises OSError."""
        names = (path.stem for path in self._folder.glob(f"*{_SUFFIX}"))
        return sorted(name for name in names if UUID.fullmatch(name))

    def read(self, uuid: str) -> Entry:
        """Return an entry. Raises BadEntry, OSError."""
        try:
            values = json.loads(self._path(uuid).read_bytes())
            entry = Entry(
                uuid=values["uuid"],
                boot_id=values["boot_id"],
                found_mw=_whole(values["found_mw"]),
                ours_mw=tuple(map(_whole, values["ours_mw"])),
                uid=_whole(values["uid"]),
                pid=_whole(values["pid"]),
            )
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise BadEntry(f"{self._path(uuid)} holds no entry: {error!r:.200}") from error
        if entry.uuid != uuid or values.get("version") != 1 or not 0 < entry.found_mw < _MOST_MW:
            raise BadEntry(f"{self._path(uuid)} holds no entry for this GPU and this version")
        return entry

    def _path(self, uuid: str) -> Path:
        return self._folder / (uuid + _SUFFIX)

    def _settle(self) -> None:
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError("not a whole number")
    return value
