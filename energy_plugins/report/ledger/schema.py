"""The ledger's tables, and how those of an earlier version become today's.

Why no Alembic: its scripts, environment and templates are for applications whose schema a team changes often. Here are
two tables that whichever of many importers comes first must bring up to date in one transaction, and one list does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    func,
    inspect,
    select,
)

from energy_plugins.errors import LedgerError

TABLES: Final = MetaData()
"""As they are after all `STEPS`, and as they are made where there are none."""
RUNS: Final = Table(
    "energy_runs",
    TABLES,
    Column("run_id", String(64), primary_key=True),
    Column("training_id", String(64), nullable=False),
    Column("inside", String(64), nullable=False),
    Column("rank", BigInteger, nullable=False),
    Column("world_size", BigInteger, nullable=False),
    Column("name", Text, nullable=False),
    Column("node", Text, nullable=False),
    Column("user", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("framework", Text, nullable=False),
    Column("simulated", Boolean, nullable=False),
    Column("started", String(40), nullable=False),
    Column("updated", String(40), nullable=False),
    Column("beat", BigInteger, nullable=False),
    Column("status", String(16), nullable=False),
    Column("duration_s", Double, nullable=False),
    Column("energy_j", Double),
    Column("missing", Text, nullable=False),
    Column("steps", BigInteger, nullable=False),
    Column("samples", BigInteger),
    Column("tokens", BigInteger),
    Index("energy_runs_by_training", "training_id"),
)
"""A row for each run that was measured, its columns those of a `LedgerEntry`."""
GPUS: Final = Table(
    "energy_run_gpus",
    TABLES,
    Column("run_id", String(64), ForeignKey("energy_runs.run_id"), primary_key=True),
    Column("uuid", String(200), primary_key=True),
    Column("name", Text, nullable=False),
    Column("energy_j", Double),
)
"""What each run drew on each of its GPUs."""

_VERSIONS: Final = Table("energy_ledger_version", MetaData(), Column("version", Integer, primary_key=True))
"""A row for each version that the tables were brought to."""


Step = Callable[[Connection], None]
STEPS: Final[Sequence[Step]] = ()
"""What makes version 2 of version 1, 3 of 2 and so on: SQL that knows the tables of its time. One that was released is
never changed; a change is one more, and `TABLES` then says what comes out."""


def version_of(connection: Connection) -> int:
    """Return which version the tables are of; 0 if there are none."""
    if not inspect(connection).has_table(_VERSIONS.name):
        return 0
    return connection.scalar(select(func.max(_VERSIONS.c.version))) or 0


def is_current(connection: Connection, steps: Sequence[Step] = STEPS) -> bool:
    """Tell whether the tables are there, as this version knows them.

    Raises:
        LedgerError: they are of a newer version.
    """
    found, newest = version_of(connection), len(steps) + 1
    if found > newest:
        raise LedgerError(
            f"the ledger is of version {found}; this version of energy-plugins knows {newest}: use a newer one"
        )
    return found == newest


def upgrade(connection: Connection, tables: MetaData = TABLES, steps: Sequence[Step] = STEPS) -> None:
    """Make the tables, or bring them up to date, inside a transaction of the caller's that nobody else can be in.

    Raises:
        LedgerError: they are of a newer version than this one knows.
    """
    if is_current(connection, steps):
        return
    if found := version_of(connection):
        for step in steps[found - 1 :]:
            step(connection)
    else:
        _VERSIONS.create(connection)
        tables.create_all(connection)
    connection.execute(_VERSIONS.insert().values(version=len(steps) + 1))
