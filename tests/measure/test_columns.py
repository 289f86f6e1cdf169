"""Columns on disk: what was appended is read back, whatever happened to the process or the disk since."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from energy_plugins.errors import ColumnError, EnergyError
from energy_plugins.measure.columns import Array, Columns, ColumnWriter, column_path

Disk: TypeAlias = Callable[[int], AbstractContextManager[None]]

SCHEMA = {"index": "i8", "energy_j": "f8", "kind": "i2"}


def rows(start: int, stop: int) -> dict[str, Array]:
    index = np.arange(start, stop)
    return {"index": index, "energy_j": index * 0.5, "kind": (index % 7).astype("i2")}


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    with ColumnWriter(tmp_path / "steps", SCHEMA) as writer:
        for start in range(0, 100, 10):
            writer.append(rows(start, start + 10))
        assert writer.rows == 100
    assert Columns.open(tmp_path / "steps", SCHEMA) == Columns.of(rows(0, 100))


@given(
    parts=st.lists(hnp.arrays("f8", st.integers(0, 20), elements=st.floats(width=64)), max_size=5),
    code=st.sampled_from(["f8", ">f8"]),
)
@settings(max_examples=30, deadline=None)
def test_appends_concatenate(tmp_path_factory: pytest.TempPathFactory, parts: list[Array], code: str) -> None:
    folder = tmp_path_factory.mktemp("columns")
    with ColumnWriter(folder, {"power_w": "f8"}) as writer:
        for part in parts:
            writer.append({"power_w": part.astype(code)})
    expected = Columns.of({"power_w": np.concatenate([np.empty(0), *parts])})
    assert Columns.open(folder, {"power_w": "f8"}) == expected


def test_rows_are_readable_while_the_writer_goes_on(tmp_path: Path) -> None:
    writer = ColumnWriter(tmp_path, SCHEMA)
    writer.append(rows(0, 3))
    seen = Columns.open(tmp_path, SCHEMA)
    writer.append(rows(3, 9))
    assert seen == Columns.of(rows(0, 3))
    assert Columns.open(tmp_path, SCHEMA).rows == 9
    writer.close()


def test_the_shortest_column_and_a_torn_value_bound_the_rows(tmp_path: Path) -> None:
    with ColumnWriter(tmp_path, SCHEMA) as writer:
        writer.append(rows(0, 10))
    os.truncate(column_path(tmp_path, "energy_j", "f8"), 7 * 8 + 3)
    os.truncate(column_path(tmp_path, "kind", "i2"), 9 * 2 + 1)
    assert Columns.open(tmp_path, SCHEMA) == Columns.of(rows(0, 7))


def test_a_killed_process_keeps_what_it_appended(tmp_path: Path) -> None:
    program = f"""
        import os, signal, numpy as np
        from pathlib import Path
        from energy_plugins.measure.columns import ColumnWriter
        writer = ColumnWriter(Path({str(tmp_path)!r}), {{"t_s": "f8"}})
        writer.append({{"t_s": np.arange(1000.0)}})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert Columns.open(tmp_path, {"t_s": "f8"}).rows == 1000


def test_a_full_disk_stops_the_writer_and_damages_nothing(tmp_path: Path, disk_of: Disk) -> None:
    writer = ColumnWriter(tmp_path, SCHEMA)
    writer.append(rows(0, 100))
    with disk_of(100 * 8 + 20), pytest.raises(ColumnError, match=r"cannot append .*: File too large") as caught:
        writer.append(rows(100, 200))
    assert caught.value.errno == errno.EFBIG
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value, EnergyError)
    assert writer.closed
    assert writer.rows == 100
    assert Columns.open(tmp_path, SCHEMA) == Columns.of(rows(0, 100))
    assert column_path(tmp_path, "index", "i8").stat().st_size == 800
    with pytest.raises(ColumnError, match="closed after 100 rows"):
        writer.append(rows(100, 200))
    writer.close()


def test_no_space_left_is_said_so(tmp_path: Path) -> None:
    writer = ColumnWriter(tmp_path, {"t_s": "f8"})
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, writer._files["t_s"])
    os.close(full)
    with pytest.raises(ColumnError, match="No space left on device"):
        writer.append({"t_s": np.zeros(3)})
    assert writer.closed


def test_a_failing_flush_is_a_column_error(tmp_path: Path) -> None:
    writer = ColumnWriter(tmp_path, {"t_s": "f8"})
    os.close(writer._files["t_s"])
    with pytest.raises(ColumnError, match="cannot flush"):
        writer.flush()
    assert writer.closed


def test_a_writer_never_opens_what_exists(tmp_path: Path) -> None:
    with ColumnWriter(tmp_path, SCHEMA) as writer:
        writer.append(rows(0, 5))
    with pytest.raises(ColumnError, match="File exists"):
        ColumnWriter(tmp_path, SCHEMA)
    assert Columns.open(tmp_path, SCHEMA).rows == 5


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "steps").write_text("mine")
    with pytest.raises(ColumnError, match="cannot create columns"):
        ColumnWriter(tmp_path / "steps", SCHEMA)
    assert Columns.open(tmp_path / "steps", SCHEMA).rows == 0


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"index": np.arange(3)}, "got the columns"),
        ({**rows(0, 3), "more": np.arange(3)}, "got the columns"),
        ({**rows(0, 3), "kind": np.zeros(4, "i2")}, "of one length"),
        ({name: np.zeros((2, 2), "i2") for name in SCHEMA}, "one-dimensional"),
    ],
)
def test_rows_that_do_not_fit(tmp_path: Path, columns: dict[str, Array], complaint: str) -> None:
    with ColumnWriter(tmp_path, SCHEMA) as writer:
        with pytest.raises(ValueError, match=complaint):
            writer.append(columns)
        writer.append(rows(0, 2))
    assert Columns.open(tmp_path, SCHEMA).rows == 2


def test_floats_are_no_indices(tmp_path: Path) -> None:
    with ColumnWriter(tmp_path, SCHEMA) as writer, pytest.raises(TypeError, match="Cannot cast"):
        writer.append({**rows(0, 2), "index": np.array([0.5, np.nan])})


@pytest.mark.parametrize("schema", [{"../up": "f8"}, {"": "f8"}, {"a" * 101: "f8"}, {"t_s": "O"}, {"t_s": "f8/../x"}])
def test_a_schema_cannot_name_other_files(tmp_path: Path, schema: dict[str, str]) -> None:
    for use in (Columns.open, ColumnWriter):
        with pytest.raises(ValueError, match=r"no column name|unknown type"):
            use(tmp_path, schema)
    with pytest.raises(ValueError, match=r"no column name|unknown type"):
        Columns.empty(schema)


def test_columns_are_a_read_only_mapping(tmp_path: Path) -> None:
    with ColumnWriter(tmp_path, SCHEMA) as writer:
        writer.append(rows(0, 4))
    for columns in (Columns.open(tmp_path, SCHEMA), Columns.of(rows(0, 4))):
        assert list(columns) == list(SCHEMA)
        assert len(columns) == 3
        assert repr(columns) == "<Columns 4 rows: index i8, energy_j f8, kind i2>"
        assert columns["index"] is columns["index"]
        assert "watts" not in columns
        with pytest.raises(KeyError):
            columns["watts"]
        with pytest.raises(ValueError, match="read-only"):
            columns["index"][0] = 9


def test_equality_sees_values_types_and_names() -> None:
    one = Columns.of({"a": np.array([1.0, np.nan])})
    assert one == Columns.of({"a": np.array([1.0, np.nan])})
    assert one != Columns.of({"a": np.array([1.0, 2.0])})
    assert one != Columns.of({"b": np.array([1.0, np.nan])})
    assert one != Columns.of({"a": np.array([1, 2])})
    assert one != {"a": 1}
    assert Columns.empty({"a": "f8"}) == Columns.of({"a": np.empty(0)})


def test_a_column_that_shrinks_after_opening_is_an_error(tmp_path: Path) -> None:
    with ColumnWriter(tmp_path, SCHEMA) as writer:
        writer.append(rows(0, 4))
    columns = Columns.open(tmp_path, SCHEMA)
    os.truncate(column_path(tmp_path, "index", "i8"), 8)
    column_path(tmp_path, "kind", "i2").unlink()
    for name in ("index", "kind"):
        with pytest.raises(ColumnError, match="cannot read the column"):
            columns[name]


def test_a_million_rows_take_no_memory(tmp_path: Path) -> None:
    columns = {"index": np.arange(1000), "energy_j": np.ones(1000), "kind": np.ones(1000, "i2")}
    with ColumnWriter(tmp_path, SCHEMA) as writer:
        tracemalloc.start()
        try:
            for _ in range(1000):
                writer.append(columns)
            loaded = Columns.open(tmp_path, SCHEMA)
            assert float(loaded["energy_j"].sum()) == 1e6
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert loaded.rows == 1_000_000
    assert peak < 200_000


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
def test_windows_are_the_table_a_part_at_a_time(size: int, tmp_path: Path) -> None:
    with ColumnWriter(tmp_path / "steps", SCHEMA) as writer:
        writer.append(rows(0, 100))
    opened, in_memory = Columns.open(tmp_path / "steps", SCHEMA), Columns.of(rows(0, 100))
    for columns in (opened, in_memory):
        parts = list(columns.windows(size, ("index", "energy_j")))
        assert {name for part in parts for name in part} == {"index", "energy_j"}
        assert max(len(part["index"]) for part in parts) <= size
        assert np.concatenate([part["energy_j"] for part in parts]).tolist() == in_memory["energy_j"].tolist()
    assert list(Columns.empty(SCHEMA).windows(10)) == []
    assert set(next(opened.windows(10))) == set(SCHEMA)


def test_a_window_of_a_column_that_shrank_is_an_error(tmp_path: Path) -> None:
    with ColumnWriter(tmp_path / "steps", SCHEMA) as writer:
        writer.append(rows(0, 100))
    windows = Columns.open(tmp_path / "steps", SCHEMA).windows(60, ("energy_j",))
    next(windows)
    os.truncate(column_path(tmp_path / "steps", "energy_j", "f8"), 8 * 80)
    with pytest.raises(ColumnError, match="cannot read the column"):
        next(windows)
