"""What a report folder is on disk: which files belong to it, and how they are put there without leaving halves."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from energy_plugins.errors import ColumnError, ReportError
from energy_plugins.measure.columns import TYPE_CODES

HEADER = "report.json"


def header_path(path: Path) -> Path:
    """Return the header meant by ``path``, a report folder or a header itself. Raises ReportError."""
    with folder_errors("cannot read the report", path):
        return path / HEADER if path.is_dir() else path


def steps_folder(folder: Path) -> Path:
    """Return where the columns of the steps lie in the report ``folder``."""
    return folder / "steps"


def spans_folder(folder: Path) -> Path:
    """Return where the columns of the spans lie in the report ``folder``."""
    return folder / "spans"


def power_folder(folder: Path, uuid: str) -> Path:
    """Return where the power columns of the GPU ``uuid`` lie in the report ``folder``, whatever characters it has."""
    return _gpu_folder(folder / "power", uuid)


def state_folder(folder: Path, uuid: str) -> Path:
    """Return where the state columns of the GPU ``uuid`` lie."""
    return _gpu_folder(folder / "state", uuid)


def activity_folder(folder: Path, uuid: str) -> Path:
    """Return where the activity columns of the GPU ``uuid`` lie."""
    return _gpu_folder(folder / "activity", uuid)


def _gpu_folder(folder: Path, uuid: str) -> Path:
    name = quote(uuid, safe="", errors="surrogatepass").replace(".", "%2E")
    return folder / (name or "%")


def prepare_folder(folder: Path, *, overwrite: bool = False) -> None:
    """Make ``folder`` ready for a new report.

    With ``overwrite`` the files of an earlier report are removed, and nothing else that lies there.

    Raises:
        ReportError: the folder holds a report and ``overwrite`` is not set, or it cannot be made or written.
    """
    refuse_earlier(folder, overwrite=overwrite)
    with folder_errors("cannot make the report folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
        remove_report(folder)


def refuse_earlier(folder: Path, *, overwrite: bool) -> None:
    """Raise ReportError if ``folder`` holds a report that may not be overwritten, or is no folder."""
    with folder_errors("cannot use the report folder", folder):
        occupied = next(report_files(folder), None) is not None
    if occupied and not overwrite:
        raise ReportError(f"{folder} holds a report: choose another folder, or pass overwrite=True to replace it")


def report_files(folder: Path) -> Iterator[Path]:
    """Yield the files of the report in ``folder``, the header first."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if (folder / HEADER).exists():
        yield folder / HEADER
    for pattern in ("steps/*", "spans/*", "power/*/*", "state/*/*", "activity/*/*"):
        yield from (path for path in sorted(folder.glob(pattern)) if path.suffix[1:] in TYPE_CODES)


def remove_report(folder: Path) -> None:
    """Remove the report in ``folder``, header first, so that a header never stands beside another report's columns."""
    for path in list(report_files(folder)):
        path.unlink()


def move_report(source: Path, target: Path) -> None:
    """Move the report in ``source`` into ``target``, header last, replacing the report there; ``source`` disappears."""
    files = list(report_files(source))
    remove_report(target)
    for path in reversed(files):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.replace(place)
    sync_folder(target)


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` so that ``path`` holds either what it held before or all of it, even after a crash.

    Raises:
        ReportError: it could not be written; ``path`` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with folder_errors("cannot write", path):
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in ``folder`` are on the disk."""
    with suppress(OSError):  # some network file systems cannot sync a folder; the files are in place all the same
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def folder_errors(what: str, path: Path) -> Iterator[None]:
    """Turn an OSError inside the block, unless it is ours, into a ReportError that says what failed, where and why."""
    try:
        yield
    except ColumnError:
        raise
    except OSError as error:
        raise ReportError(f"{what} {path}: {error.strerror or error}") from error
