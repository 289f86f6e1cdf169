"""A run's heartbeat: what it drew goes to the spool now and then, and nothing that measures waits for the disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Self

from energy_plugins.errors import EnergyError
from energy_plugins.measure.ledger_entry import LedgerEntry, Status, is_id, one_line
from energy_plugins.measure.spool import spool_folder, write_entry

if TYPE_CHECKING:
    from energy_plugins.measure.report import Report

_PERIOD_NS: Final = 5_500_000_000
"""Shortest time between two heartbeats. The collector looks every 2 s and knows what was drawn until 2 s before, so a
run that is killed loses less than 10 s."""
_PATIENCE_S: Final = 1.0
"""How long the end of a run waits for the disk."""
_HANGS: Final = "the disk takes too long"

open_runs: Final[list[str]] = []
"""The runs that this process measures now: one that begins is inside the last of them."""


@dataclass(frozen=True)
class SoFar:
    """What is known of a run up to some time; joules are None where nothing was measured."""

    duration_s: float
    energy_j: float | None
    gpu_j: Mapping[str, float | None]
    """By UUID."""
    steps: int
    samples: int | None
    tokens: int | None
    missing: str = ""

    @classmethod
    def of(cls, report: Report) -> Self:
        """Return what a report says."""
        return cls(
            duration_s=report.duration_s,
            energy_j=report.total_j,
            gpu_j=report.gpu_j,
            steps=report.work.steps,
            samples=report.work.samples,
            tokens=report.work.tokens,
            missing=report.missing.get("total_j", ""),
        )


class Heartbeat:
    """Writes the ledger's entry of one run. Nothing here raises; what goes wrong is said once, by ``say``.

    Args:
        first: the entry before anything is measured, None if none is to be kept.
        say: how to warn.
        threaded: whether entries are written on a thread of their own, as they are unless time is virtual.
    """

    def __init__(self, first: LedgerEntry | None, say: Callable[[str], None], *, threaded: bool) -> None:
        self.cpu_s = 0.0
        """CPU time spent on writing."""
        self.training_id = ""
        """Of the training that this run is a rank of, once rank 0 has told."""
        self._entry = first
        self._last: LedgerEntry | None = None
        self._say = say
        self._threaded = threaded
        self._writer: threading.Thread | None = None
        self._due_ns: int | None = None
        self._trouble = ""
        if first is not None:
            open_runs.append(first.run_id)

    def due(self, now_ns: int) -> bool:
        """Tell whether it is time for the next entry: at once, and then every few seconds."""
        return self._entry is not None and (self._due_ns is None or now_ns >= self._due_ns)

    def beat(self, now_ns: int, so_far: SoFar) -> None:
        """Write what is known; skipped while the disk has not taken the last entry."""
        self._due_ns = now_ns + _PERIOD_NS
        self._tell()
        if self._writer is None or not self._writer.is_alive():
            self._write(self._next(Status.RUNNING, so_far))

    def end(self, status: Status, so_far: SoFar) -> None:
        """Begin to write the last word; `close` waits for it."""
        if self._entry is None:
            return
        open_runs.remove(self._entry.run_id)
        if status is not Status.DISCARDED or self._entry.beat > 0:
            self._join()
            if self._writer is not None:
                self._trouble = _HANGS
            else:
                self._write(self._next(status, so_far))
            self._last = self._entry
        self._entry = None

    def close(self) -> str | None:
        """Wait for the last word to be written, a second at most, and return what was said if it is not."""
        if self._trouble != _HANGS:
            self._join()
        if self._writer is not None:
            self._trouble = _HANGS
        return self._tell()

    def belongs_to(self, training_id: str) -> None:
        """Have the entry say of which training this run is a rank: by the run of rank 0, as that told."""
        if not is_id(training_id):
            return
        self.training_id = training_id
        if self._last is not None and self._last.training_id != training_id and self._writer is None:
            self._last = replace(self._last, training_id=training_id, beat=self._last.beat + 1)
            self._write(self._last)
            self.close()

    def _next(self, status: Status, so_far: SoFar) -> LedgerEntry | None:
        before = self._entry
        if before is None:
            return None
        gpus = tuple(replace(gpu, energy_j=_amount(so_far.gpu_j.get(gpu.uuid))) for gpu in before.gpus)
        self._entry = replace(
            before,
            training_id=self.training_id or before.training_id,
            updated=datetime.now(UTC).isoformat(timespec="milliseconds"),
            beat=before.beat + 1,
            status=status,
            duration_s=so_far.duration_s,
            energy_j=_amount(so_far.energy_j),
            missing=one_line(so_far.missing),
            gpus=gpus,
            steps=so_far.steps,
            samples=so_far.samples,
            tokens=so_far.tokens,
        )
        return self._entry

    def _write(self, entry: LedgerEntry | None) -> None:
        if entry is None:
            return
        if self._threaded:
            self._writer = threading.Thread(target=self._put, args=(entry,), name="energy-ledger", daemon=True)
            try:
                self._writer.start()
            except RuntimeError:  # the interpreter ends
                self._writer = None
            else:
                return
        self._put(entry)

    def _put(self, entry: LedgerEntry) -> None:
        began = time.thread_time()
        try:
            write_entry(spool_folder(), entry)
        except OSError as error:
            self._trouble = f"{error.filename or 'the spool'}: {error.strerror or error}"
        except (EnergyError, RuntimeError, ValueError) as error:
            self._trouble = str(error)
        self.cpu_s += time.thread_time() - began

    def _join(self) -> None:
        if self._writer is not None:
            self._writer.join(_PATIENCE_S)
            self._writer = self._writer if self._writer.is_alive() else None

    def _tell(self) -> str | None:
        trouble, self._trouble = self._trouble, ""
        if not trouble:
            return None
        text = f"the ledger may lack this run: {trouble}"
        self._say(text)
        return text


def _amount(energy_j: float | None) -> float | None:
    """Return joules as an entry may hold them: a window of a moment may have a little less than none."""
    return None if energy_j is None else max(energy_j, 0.0)
