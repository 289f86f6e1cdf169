"""Where a run's report goes: the folder it was given, or a private one that goes with the process."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from energy_plugins.errors import ReportError
from energy_plugins.measure.report_files import prepare_folder

_PRIVATE: list[Path] = []
os.register_at_fork(after_in_child=_PRIVATE.clear)  # the folders are the parent's


def report_folder(folder: Path | None) -> Path:
    """Return the folder for a report, made ready; a private one if none is given. Raises ReportError."""
    if folder is not None:
        prepare_folder(folder)
        return folder
    try:
        private = Path(tempfile.mkdtemp(prefix="energy-"))
    except OSError as error:
        raise ReportError(f"no temporary folder for the report: {error}; give a folder, or set TMPDIR") from error
    _PRIVATE.append(private)
    return private


def drop_private_folders() -> None:
    """Remove the folders that nobody asked for."""
    for folder in _PRIVATE:
        shutil.rmtree(folder, ignore_errors=True)
    _PRIVATE.clear()
