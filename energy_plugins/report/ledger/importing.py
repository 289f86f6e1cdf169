"""Entries of the spool become rows of the ledger: each run once, however often and by however many that is done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, delete, insert, or_, select, update

from energy_plugins.measure.ledger_entry import LedgerEntry, Status
from energy_plugins.report.ledger.database import Database
from energy_plugins.report.ledger.schema import GPUS, RUNS
from energy_plugins.report.ledger.spool import FINAL, read_spool, remove_spooled

_A_TIME: Final = 200
"""Runs in one transaction: few enough that others wait for milliseconds."""
_COLUMNS: Final = tuple(field.name for field in fields(LedgerEntry) if field.name in RUNS.c)


@dataclass(frozen=True)
class Imported:
    """What an import did."""

    new: int = 0
    updated: int = 0
    unchanged: int = 0
    troubles: tuple[str, ...] = ()
    """Why files were passed over; they are still there."""

    def __add__(self, other: Imported) -> Imported:
        return Imported(
            self.new + other.new,
            self.updated + other.updated,
            self.unchanged + other.unchanged,
            self.troubles + other.troubles,
        )


def import_spool(database: Database, folder: Path, *, remove: bool = False) -> Imported:
    """Bring what a spool holds into a ledger.

    With ``remove`` the files of ended runs are removed once they are in it.

    Raises:
        LedgerError: the spool cannot be read or the ledger not be written. What was imported before is there.
    """
    known = database.write(_ended)
    done = Imported(unchanged=0)
    if remove:
        known = frozenset()
    spooled = read_spool(folder, known)
    while some := list(islice(spooled, _A_TIME)):
        entries = [one.entry for one in some if one.entry is not None]
        done += Imported(troubles=tuple(one.trouble for one in some if one.entry is None))
        done += put(database, entries)
        if remove:
            remove_spooled(folder, entries)
    return done


def put(database: Database, entries: Iterable[LedgerEntry]) -> Imported:
    """Bring entries into a ledger, all of them or none. Raises LedgerError."""
    return database.write(partial(_put, {entry.run_id: entry for entry in entries}))


def supersedes(new: tuple[int, Status], old: tuple[int, Status]) -> bool:
    """Tell whether what an entry says, its beat and status, is later than what the ledger holds of the run.

    A later heartbeat is, and of the same heartbeat what others saw became of the run: silent, and killed for good.
    """
    if new[0] != old[0]:
        return new[0] > old[0]
    return new[1] is not old[1] and old[1] not in FINAL


def _ended(connection: Connection) -> frozenset[str]:
    """Return the runs of which nothing more will be heard: of a rank, once it has said to whose training it belongs."""
    final = RUNS.c.status.in_([status.value for status in FINAL])
    has_heard = or_(RUNS.c.rank == 0, RUNS.c.training_id != RUNS.c.run_id)
    return frozenset(connection.scalars(select(RUNS.c.run_id).where(final, has_heard)))


def _put(entries: Mapping[str, LedgerEntry], connection: Connection) -> Imported:
    found = connection.execute(
        select(RUNS.c.run_id, RUNS.c.beat, RUNS.c.status).where(RUNS.c.run_id.in_(entries)).with_for_update()
    )
    there = {row.run_id: (row.beat, Status(row.status)) for row in found}
    new = [entry for run_id, entry in sorted(entries.items()) if run_id not in there]
    later = [
        entry
        for run_id, entry in sorted(entries.items())
        if run_id in there and supersedes((entry.beat, entry.status), there[run_id])
    ]
    if new:
        connection.execute(insert(RUNS), [_row(entry) for entry in new])
    for entry in later:
        connection.execute(update(RUNS).where(RUNS.c.run_id == entry.run_id).values(_row(entry)))
        connection.execute(delete(GPUS).where(GPUS.c.run_id == entry.run_id))
    if gpus := _gpu_rows([*new, *later]):
        connection.execute(insert(GPUS), gpus)
    return Imported(len(new), len(later), len(entries) - len(new) - len(later))


def _row(entry: LedgerEntry) -> dict[str, object]:
    return {name: getattr(entry, name) for name in _COLUMNS} | {"status": entry.status.value}


def _gpu_rows(entries: Sequence[LedgerEntry]) -> list[dict[str, object]]:
    return [{"run_id": entry.run_id, **asdict(gpu)} for entry in entries for gpu in entry.gpus]
