"""Who could change what root is about to run or believe: every folder on the way to a file counts.

POSIX access lists need no look of their own: while there is one, the group bits of a mode are its mask, so whoever may
write by such a list shows as a writable group (acl(5)).
"""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterator
from pathlib import Path

_MOST_LINKS = 40  # as many as the kernel follows (path_resolution(7))
_MAPS = Path("/proc/self/maps")


def faults(path: Path, *, proprietor: int = 0) -> Iterator[str]:
    """Yield a sentence for everything on the way to ``path`` that others than root and ``proprietor`` could change.

    A folder that all may write but whose entries only their owners may move (the sticky bit, as in ``/tmp``) is a way
    to a folder, not to a file: a file of root's could be linked there by others.
    """
    if not path.is_absolute():
        yield f"{path} is not a full path"
        return
    yield from _walk(path, frozenset({0, proprietor}), _MOST_LINKS)


def faults_of_this_process() -> Iterator[str]:
    """Yield the same for all code of this process: its interpreter, its libraries, its modules and where they lie."""
    for path in sorted({*_mapped_files(), *_module_files(), *(Path(entry) for entry in sys.path if entry)}):
        if path.exists():
            yield from faults(path)


def _walk(path: Path, trusted: frozenset[int], links_left: int) -> Iterator[str]:
    here = Path(path.anchor)
    yield from _complaint(here, trusted, leads_to_folder=True)
    for place, part in enumerate(path.parts[1:], start=2):
        here = here / ".." if part == ".." else here / part
        rest = path.parts[place:]
        try:
            mode = here.lstat().st_mode
            if stat.S_ISLNK(mode):
                yield from _owner(here, trusted)
                if links_left == 0:
                    yield f"{path} leads through too many links"
                    return
                yield from _walk(here.parent.joinpath(here.readlink(), *rest), trusted, links_left - 1)
                return
            leads_to_folder = bool(rest) and stat.S_ISDIR(here.joinpath(rest[0]).lstat().st_mode)
        except OSError as error:
            yield f"{error.filename or here} cannot be examined: {error.strerror}"
            return
        yield from _complaint(here, trusted, leads_to_folder=leads_to_folder)


def _complaint(path: Path, trusted: frozenset[int], *, leads_to_folder: bool) -> Iterator[str]:
    yield from _owner(path, trusted)
    mode = path.stat().st_mode
    if mode & (stat.S_IWGRP | stat.S_IWOTH) and not (mode & stat.S_ISVTX and leads_to_folder):
        whose = "everybody" if mode & stat.S_IWOTH else "its group"
        yield f"{path} can be written by {whose} (mode {stat.S_IMODE(mode):o})"


def _owner(path: Path, trusted: frozenset[int]) -> Iterator[str]:
    uid = path.lstat().st_uid
    if uid not in trusted:
        yield f"{path} belongs to uid {uid}"


def _mapped_files() -> Iterator[Path]:
    for line in _MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        _, _, name = line.partition("/")
        if name:
            yield Path("/" + name)


def _module_files() -> Iterator[Path]:
    for module in list(sys.modules.values()):
        for file in (getattr(module, "__file__", None), getattr(module, "__cached__", None)):
            if isinstance(file, str) and file.startswith("/"):
                yield Path(file)
