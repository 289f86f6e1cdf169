"""A line of JSON a second, into a file or a pipe, for anything that can read lines."""

from __future__ import annotations

import errno
import json
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Final

from energy_plugins.errors import ExportError
from energy_plugins.report.exporters.figures import RunFigures
from energy_plugins.report.exporters.forked import keep_from_children

SCHEMA: Final = "energy-plugins/figures"
VERSION: Final = 1
"""Raised when a key changes its meaning or goes."""
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC


class JsonLines:
    """Appends the figures to ``path``: a file, a named pipe, or ``/dev/fd/N``.

    Nothing here waits for a reader: a pipe that nobody reads from, or that is full, gets no line. No line is torn.

    Raises:
        ExportError: the path cannot be written to.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._file: int | None = None
        self._rest = b""
        """Of a line for which there was no room."""
        try:
            self._open()
        except OSError as error:
            if error.errno != errno.ENXIO:  # a pipe whose reader is yet to come
                raise ExportError(
                    f"{self._path} cannot be written to ({error.strerror}); set report.json_lines to a file or a pipe "
                    "that can"
                ) from error
        keep_from_children(self)

    def publish(self, figures: RunFigures) -> None:
        """Append a line. Raises OSError if that cannot be done now; the next line is tried all the same."""
        if self._file is None:
            self._reopen()
        self._rest = self._rest[self._put(self._rest) :]
        line = {"schema": SCHEMA, "version": VERSION, **asdict(figures), "energy_j": figures.energy_j}
        text = json.dumps(line).encode() + b"\n"
        if self._rest or not (written := self._put(text)):
            raise ExportError(f"whoever reads {self._path} is too slow, so lines are left out")
        self._rest = text[written:]

    def close(self) -> None:
        """End the line that was begun, if there is room for it, and close the file."""
        with suppress(OSError):
            self._put(self._rest)
        self.let_go()

    def let_go(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                os.close(file)

    def _open(self) -> None:
        self._file = os.open(self._path, _FLAGS, 0o666)

    def _reopen(self) -> None:
        try:
            self._open()
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise ExportError(f"nobody reads from the pipe {self._path}") from error
            raise

    def _put(self, data: bytes) -> int:
        """Write what there is room for, and return how much that was."""
        if self._file is None or not data:
            return 0
        try:
            return os.write(self._file, data)
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            self._rest = b""  # the next reader begins with a line
            self.let_go()
            raise
