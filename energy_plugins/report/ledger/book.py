"""The ledger: every run that was ever measured, failed and killed ones included, in a database.

Runs write small files into the spool of their node; `Ledger.import_spool` brings them into a database: a file of SQLite
on this node, or any that SQLAlchemy knows. Nothing is sent anywhere unless somebody gives its URL.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Self

from energy_plugins.errors import LedgerError

try:
    from sqlalchemy import select
except ImportError as error:
    raise LedgerError("the ledger needs SQLAlchemy: pip install 'energy-plugins[ledger]'") from error

from energy_plugins.measure.ledger_entry import GpuEntry, LedgerRow, Status
from energy_plugins.measure.spool import spool_folder
from energy_plugins.report.ledger.database import PATIENCE_S, Database
from energy_plugins.report.ledger.importing import Imported, import_spool
from energy_plugins.report.ledger.runs import Run, runs_of
from energy_plugins.report.ledger.schema import GPUS, RUNS


class Ledger:
    """A ledger, to be used with ``with``; opened when it is first asked for something.

    Args:
        url: of a database, as SQLAlchemy takes it; this user's own file on this node if left out.
        patience_s: how long others' locks are waited for.

    Raises:
        LedgerError: the URL is none, its driver is not installed, or it is a file on a network file system.
    """

    def __init__(self, url: str | None = None, *, patience_s: float = PATIENCE_S) -> None:
        self._database = Database(url, patience_s=patience_s)

    def __str__(self) -> str:
        return str(self._database)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._database.close()

    def import_spool(self, folder: Path | None = None, *, remove: bool = False) -> Imported:
        """Bring in what the runs of a spool have written, by default of this user's on this node.

        It may be done at any time and by many at once: each run is in the ledger once, with its latest heartbeat. A run
        whose process has ended without a last word becomes a killed one.

        Args:
            folder: of the spool.
            remove: whether to remove the files of runs that have ended, once they are in this ledger.

        Raises:
            LedgerError: the spool cannot be read or the ledger not be written; no file was lost.
        """
        try:
            folder = folder or spool_folder()
        except RuntimeError as error:
            raise LedgerError(f"there is no spool ({error}): set XDG_STATE_HOME") from error
        return import_spool(self._database, folder, remove=remove)

    def runs(self) -> tuple[Run, ...]:
        """Return all runs, in the order of their start. Raises LedgerError."""
        with self._database.reading() as connection:
            gpus: dict[str, list[GpuEntry]] = defaultdict(list)
            for run_id, uuid, name, energy_j in connection.execute(
                select(GPUS.c.run_id, GPUS.c.uuid, GPUS.c.name, GPUS.c.energy_j).order_by(GPUS.c.run_id, GPUS.c.uuid)
            ):
                gpus[run_id].append(GpuEntry(uuid=uuid, name=name, energy_j=energy_j))
            columns = [column for column in RUNS.c if column.name != "beat"]
            rows = [
                LedgerRow(**{**row, "status": Status(row["status"])}, gpus=tuple(gpus[row["run_id"]]))
                for row in connection.execute(select(*columns)).mappings()
            ]
        return runs_of(rows)
