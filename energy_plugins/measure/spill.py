"""Settled rows go to the report's folder as the run goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from energy_plugins.errors import ColumnError
from energy_plugins.measure.attribution import SpanEnergy
from energy_plugins.measure.columns import Array, ColumnWriter, Schema
from energy_plugins.measure.report_files import activity_folder, power_folder, spans_folder, state_folder, steps_folder
from energy_plugins.measure.report_parts import (
    ACTIVITY_COLUMNS,
    POWER_COLUMNS,
    SPAN_COLUMNS,
    STATE_COLUMNS,
    STEP_COLUMNS,
)
from energy_plugins.measure.spans import Closed
from energy_plugins.measure.totals import StepRows

_TIMES = {"t_s": "t_ns", "start_s": "start_ns", "end_s": "end_ns"}
"""Columns of times -> the sampler's."""


class Spill:
    """Writes settled rows to the report's folder as the run goes.

    A GPU's tables are made with their first rows: eight GPUs have some hundred files, which would keep the first sample
    waiting. A disk that fails ends it, once, with the error kept.
    """

    def __init__(
        self, folder: Path, uuids: Sequence[str], start_ns: int, *, keep_power: bool = True, activity: bool = False
    ) -> None:
        self.folder = folder
        self.error: ColumnError | None = None
        self._start_ns = start_ns
        self._kept = tuple(uuids) if keep_power else ()
        self._active = activity
        self._tables: dict[Path, ColumnWriter] = {}
        for table, schema in ((steps_folder(folder), STEP_COLUMNS), (spans_folder(folder), SPAN_COLUMNS)):
            self._tables[table] = ColumnWriter(table, schema)

    def steps(self, first: int, rows: StepRows) -> None:
        """Append settled steps, numbered from ``first``."""
        self._append(
            steps_folder(self.folder),
            STEP_COLUMNS,
            {
                "index": np.arange(first, first + len(rows.steps)),
                "start_s": self._seconds([step.start_ns for step in rows.steps]),
                "end_s": self._seconds([step.end_ns for step in rows.steps]),
                "energy_j": rows.energy.joules,
                "error_bound_j": rows.energy.error_bound_j,
                "coverage": rows.energy.coverage,
                "samples": np.array([step.samples for step in rows.steps], np.int64),
                "tokens": np.array([step.tokens for step in rows.steps], np.int64),
                "data_wait_j": rows.data_wait_j,
                "stall_j": rows.stall_j,
            },
        )

    def spans(self, spans: Sequence[Closed], energy: SpanEnergy) -> None:
        """Append settled spans."""
        self._append(
            spans_folder(self.folder),
            SPAN_COLUMNS,
            {
                "kind": np.array([span.kind for span in spans], np.int16),
                "start_s": self._seconds([span.start_ns for span in spans]),
                "end_s": self._seconds([span.end_ns for span in spans]),
                "energy_j": energy.joules,
                "error_bound_j": energy.error_bound_j,
                "coverage": energy.coverage,
            },
        )

    def power(self, gpu: int, t_ns: NDArray[np.int64], power_w: NDArray[np.float64]) -> None:
        """Append power samples of a GPU, if they are kept."""
        if self._kept and len(t_ns):
            columns = {"t_s": (t_ns - self._start_ns) * 1e-9, "power_w": power_w}
            self._append(power_folder(self.folder, self._kept[gpu]), POWER_COLUMNS, columns)

    def state(self, gpu: int, rows: NDArray[np.void]) -> None:
        """Append state readings of a GPU, if they are kept (the columns of ``_native.Sampler.state``)."""
        if self._kept:
            table = state_folder(self.folder, self._kept[gpu])
            self._append(table, STATE_COLUMNS, self._columns(rows, STATE_COLUMNS))

    def activity(self, gpu: int, rows: NDArray[np.void]) -> None:
        """Append activity readings of a GPU, if they are kept (the columns of ``_native.Sampler.activity``)."""
        if self._kept and self._active:
            table = activity_folder(self.folder, self._kept[gpu])
            self._append(table, ACTIVITY_COLUMNS, self._columns(rows, ACTIVITY_COLUMNS))

    def close(self) -> None:
        """Close the files."""
        for writer in self._tables.values():
            try:
                writer.close()
            except ColumnError as error:
                self.error = self.error or error

    def _append(self, table: Path, schema: Schema, columns: Mapping[str, Array]) -> None:
        if self.error is not None:
            return
        try:
            if table not in self._tables:
                self._tables[table] = ColumnWriter(table, schema)
            self._tables[table].append(columns)
        except ColumnError as error:
            self.error = error

    def _columns(self, rows: NDArray[np.void], schema: Schema) -> dict[str, Array]:
        """Return native rows as columns, their times (``..._ns``) as seconds since the window opened (``..._s``)."""
        return {name: (rows[_TIMES[name]] - self._start_ns) * 1e-9 if name in _TIMES else rows[name] for name in schema}

    def _seconds(self, times_ns: list[int]) -> NDArray[np.float64]:
        return np.asarray((np.array(times_ns, np.int64) - self._start_ns) * 1e-9)
