"""Runs of the ledger as a table in a file, for programs that make their own sums."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from energy_plugins.errors import LedgerError
from energy_plugins.report.ledger.runs import Run

SUFFIXES: Final = (".csv", ".parquet")

Cell = str | int | float | bool | None


def cells_of(run: Run) -> dict[str, Cell]:
    """Return a run as cells by the names of their columns, with units where they have any."""
    return {
        "run_id": run.run_id,
        "name": run.name,
        "project": run.project,
        "model": run.model,
        "framework": run.framework,
        "user": run.user,
        "nodes": ";".join(run.nodes),
        "gpus": ";".join(gpu.uuid for gpu in run.gpus),
        "gpu_names": ";".join(dict.fromkeys(gpu.name for gpu in run.gpus)),
        "ranks": run.ranks,
        "world_size": run.world_size,
        "simulated": run.simulated,
        "started": run.started,
        "status": run.status.value,
        "duration_s": run.duration_s,
        "energy_j": run.energy_j,
        "counted_j": None if run.energy_j is None else run.counted_j,
        "missing": run.missing,
        "steps": run.steps,
        "samples": run.samples,
        "tokens": run.tokens,
    }


def export(path: Path, runs: Sequence[Run]) -> None:
    """Write runs as CSV or Parquet, as the name of the file says; it is replaced as a whole.

    Raises:
        LedgerError: the name says neither, pyarrow is not installed for Parquet, or the file cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise LedgerError(f"{path} is neither {' nor '.join(SUFFIXES)}: the name says which of them is written")
    rows = [cells_of(run) for run in runs]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        (_write_csv if path.suffix == ".csv" else _write_parquet)(temporary, rows)
        temporary.replace(path)
    except OSError as error:
        raise LedgerError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_csv(path: Path, rows: Sequence[Mapping[str, Cell]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(_TYPES))
        writer.writeheader()
        writer.writerows(rows)


def _write_parquet(path: Path, rows: Sequence[Mapping[str, Cell]]) -> None:
    try:
        import pyarrow as pa  # noqa: PLC0415 - large, and for this format alone
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError as error:
        raise LedgerError("Parquet needs pyarrow: pip install pyarrow, or name a .csv") from error
    types = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    schema = pa.schema([(name, types[kind]) for name, kind in _TYPES.items()])
    parquet.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=schema), path)


_TYPES: Final[Mapping[str, type]] = {
    **dict.fromkeys(("run_id", "name", "project", "model", "framework", "user", "nodes", "gpus", "gpu_names"), str),
    **dict.fromkeys(("ranks", "world_size"), int),
    "simulated": bool,
    **dict.fromkeys(("started", "status"), str),
    **dict.fromkeys(("duration_s", "energy_j", "counted_j"), float),
    "missing": str,
    **dict.fromkeys(("steps", "samples", "tokens"), int),
}
"""The columns of `cells_of` and what each holds, if there is a run or not."""
