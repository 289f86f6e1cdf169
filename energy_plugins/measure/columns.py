"""Columns of numbers: appended to disk while a run goes, memory-mapped when read.

A table is a folder with one raw little-endian file per column, ``<name>.<type code>`` (``energy_j.f8``). There is
nothing to finish and nothing to index: a run killed in mid-write leaves columns of unequal length or a torn last
value, and the shortest column says how many rows are whole. In float columns NaN means "not measured".
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from energy_plugins.errors import ColumnError

Array: TypeAlias = NDArray[Any]
Schema: TypeAlias = Mapping[str, str]
"""Column name to type code, for example ``{"index": "i8", "energy_j": "f8"}``."""

TYPE_CODES = frozenset({"i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"})
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")


def check_schema(schema: Schema) -> None:
    """Raise ValueError unless every name can be a file name and every type code is one of `TYPE_CODES`."""
    for name, code in schema.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no column name: letters, digits and underscores only")
        if code not in TYPE_CODES:
            raise ValueError(
                f"column {name!r} has the unknown type {code!r}; known are {', '.join(sorted(TYPE_CODES))}"
            )


def column_path(folder: Path, name: str, code: str) -> Path:
    """Return the file that holds column ``name`` of the table in ``folder``."""
    return folder / f"{name}.{code}"


class ColumnWriter:
    """Appends rows to the column files of one table; never opens a file that exists.

    Each append is one unbuffered write per column, so a killed process loses only rows it never appended. When the
    disk fails, the columns are cut back to the rows that are whole, the writer closes and raises `ColumnError`: the
    caller stops spilling, and everything appended before stays readable.
    """

    def __init__(self, folder: Path, schema: Schema) -> None:
        check_schema(schema)
        self.folder = folder
        self.schema: Schema = MappingProxyType(dict(schema))
        self._rows = 0
        self._files: dict[str, int] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, code in self.schema.items():
                path = column_path(folder, name, code)
                self._files[name] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except OSError as error:
            self._release()
            raise _column_error("cannot create columns in", folder, error) from error

    @property
    def rows(self) -> int:
        """Rows appended so far, all of them whole."""
        return self._rows

    @property
    def closed(self) -> bool:
        """Whether nothing more can be appended: closed, or stopped by a failing disk."""
        return not self._files

    def append(self, columns: Mapping[str, Array]) -> None:
        """Append rows, given as one array per column of the schema, all of one length.

        Raises:
            ColumnError: the disk failed now, or the writer is closed.
            ValueError: other columns than the schema's, or arrays of different lengths.
            TypeError: an array that its column's type cannot hold, floats for an integer column for example.
        """
        if self.closed:
            raise ColumnError(f"the columns in {self.folder} are closed after {self._rows} rows")
        if columns.keys() != self.schema.keys():
            raise ValueError(f"got the columns {sorted(columns)}, the table has {sorted(self.schema)}")
        arrays = {name: _packed(columns[name], code) for name, code in self.schema.items()}
        added = _common_length(arrays)
        if added == 0:
            return
        try:
            for name, array in arrays.items():
                _write_all(self._files[name], array)
        except OSError as error:
            self._cut_back()
            self._release()
            raise _column_error("cannot append to the columns in", self.folder, error) from error
        self._rows += added

    def flush(self) -> None:
        """Wait until the rows are on the disk itself and would survive a crash of the machine. Raises ColumnError."""
        try:
            for file in self._files.values():
                os.fsync(file)
        except OSError as error:
            self._release()
            raise _column_error("cannot flush the columns in", self.folder, error) from error

    def close(self) -> None:
        """Flush and close; harmless when closed already. Raises ColumnError."""
        self.flush()
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _cut_back(self) -> None:
        """Drop what a failed append left behind; where even that fails, the reader leaves it out."""
        for name, code in self.schema.items():
            try:
                os.ftruncate(self._files[name], self._rows * np.dtype(code).itemsize)
            except OSError:
                continue

    def _release(self) -> None:
        files, self._files = self._files, {}
        for file in files.values():
            try:
                os.close(file)
            except OSError:  # the descriptor is gone either way, and fsync has reported what matters
                continue


class Columns(Mapping[str, Array]):
    """A read-only table: column name to array, all of `rows` values.

    From a folder, a column is memory-mapped when it is first asked for, so opening a table of any length costs
    nothing. ``pandas.DataFrame(dict(columns))`` makes a DataFrame of it.
    """

    def __init__(self, schema: Schema, rows: int, *, arrays: Mapping[str, Array], folder: Path | None = None) -> None:
        """Use `of`, `empty` or `open` instead."""
        self.schema: Schema = MappingProxyType(dict(schema))
        self.rows = rows
        self._arrays = dict(arrays)
        self._folder = folder

    @classmethod
    def of(cls, arrays: Mapping[str, Array]) -> Self:
        """Wrap arrays of one length, without copying; the types become the schema. Raises ValueError."""
        schema = {name: array.dtype.str[1:] for name, array in arrays.items()}
        check_schema(schema)
        packed = {name: _read_only(_packed(array, schema[name])) for name, array in arrays.items()}
        return cls(schema, _common_length(packed), arrays=packed)

    @classmethod
    def empty(cls, schema: Schema) -> Self:
        """Return the table of this schema that has no rows."""
        check_schema(schema)
        return cls.of({name: np.empty(0, _little_endian(code)) for name, code in schema.items()})

    @classmethod
    def open(cls, folder: Path, schema: Schema, *, rows: int | None = None) -> Self:
        """Open the table in ``folder``: its whole rows, at most ``rows`` of them. A missing column is an empty one.

        Raises:
            ColumnError: the folder may not be read.
            ValueError: the schema has a name or a type that no column can have.
        """
        check_schema(schema)
        whole = min((_whole_values(folder, name, code) for name, code in schema.items()), default=0)
        return cls(schema, whole if rows is None else min(whole, rows), arrays={}, folder=folder)

    def __getitem__(self, name: str) -> Array:
        if name not in self._arrays:
            self._arrays[name] = self._map(name, self.schema[name], 0, self.rows)
        return self._arrays[name]

    def windows(self, rows: int, names: Iterable[str] | None = None) -> Iterator[Mapping[str, Array]]:
        """Yield the table, or some of its columns, at most ``rows`` rows at a time, so that memory stays flat.

        A column that is used as a whole stays mapped, and every page that was read of it counts as memory.

        Raises:
            ColumnError: the columns may not be read.
        """
        chosen = tuple(self if names is None else names)
        for start in range(0, self.rows, rows):
            end = min(start + rows, self.rows)
            yield {
                name: self._arrays[name][start:end]
                if name in self._arrays
                else self._map(name, self.schema[name], start, end)
                for name in chosen
            }

    def __iter__(self) -> Iterator[str]:
        return iter(self.schema)

    def __len__(self) -> int:
        return len(self.schema)

    def __eq__(self, other: object) -> bool:
        """Same columns, same types, same values; NaN equals NaN."""
        if not isinstance(other, Columns):
            return NotImplemented
        return (
            dict(self.schema) == dict(other.schema)
            and self.rows == other.rows
            and all(np.array_equal(self[name], other[name], equal_nan=True) for name in self)
        )

    __hash__ = None  # type: ignore[assignment]  # arrays compare by value and have no hash

    def __repr__(self) -> str:
        return f"<Columns {self.rows} rows: {', '.join(f'{name} {code}' for name, code in self.schema.items())}>"

    def _map(self, name: str, code: str, start: int, end: int) -> Array:
        kind = _little_endian(code)
        if self._folder is None or start == end:
            return np.empty(0, kind)
        path = column_path(self._folder, name, code)
        try:
            return np.asarray(np.memmap(path, kind, mode="r", offset=start * kind.itemsize, shape=(end - start,)))
        except (OSError, ValueError) as error:  # ValueError: the file has become shorter since the table was opened
            raise _column_error("cannot read the column", path, error) from error


def _little_endian(code: str) -> np.dtype[Any]:
    return np.dtype(f"<{code}")


def _packed(array: Array, code: str) -> Array:
    """Return ``array`` as contiguous little-endian values of one column; TypeError if that would lose its kind."""
    return np.ascontiguousarray(np.asarray(array).astype(_little_endian(code), casting="same_kind", copy=False))


def _read_only(array: Array) -> Array:
    view = array.view()
    view.flags.writeable = False
    return view


def _common_length(arrays: Mapping[str, Array]) -> int:
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        found = {name: array.shape for name, array in arrays.items()}
        raise ValueError(f"columns must be one-dimensional and of one length, got {found}")
    return int(shapes.pop()[0]) if shapes else 0


def _whole_values(folder: Path, name: str, code: str) -> int:
    path = column_path(folder, name, code)
    try:
        return path.stat().st_size // np.dtype(code).itemsize if path.is_file() else 0
    except OSError as error:
        raise _column_error("cannot read the column", path, error) from error


def _write_all(file: int, array: Array) -> None:
    """Write all bytes: a disk that fills up takes a part first and fails at the next attempt."""
    left = array.data.cast("B")
    while left:
        left = left[os.write(file, left) :]


def _column_error(what: str, path: Path, error: Exception) -> ColumnError:
    system = error if isinstance(error, OSError) else OSError()
    column_error = ColumnError(f"{what} {path}: {system.strerror or error}")
    column_error.errno = system.errno
    return column_error
