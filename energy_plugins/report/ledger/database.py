"""The database of a ledger: opened by its URL, its tables up to date, and its errors as sentences."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from energy_plugins.errors import LedgerError
from energy_plugins.report.ledger.place import default_ledger, refuse_network
from energy_plugins.report.ledger.schema import is_current, upgrade

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

_T = TypeVar("_T")

PATIENCE_S: Final = 60.0
"""How long others' locks are waited for."""
_PAUSES_S: Final = (0.01, 0.5)
"""Between two tries at what somebody else did at the same time: at first, and at most."""
_LOCK: Final = 0x656E65726779
"""The advisory lock of PostgreSQL that writers take: "energy" in ASCII."""
_WRITES: Final = "energy_writes"
_AGAIN: Final = frozenset({"40001", "40P01"})
"""SQLSTATE of transactions that had to give way to another: serialization failure, deadlock."""


class Database:
    """The database of a ledger.

    Nothing is opened before `reading` or `writing`.

    Args:
        url: as SQLAlchemy takes it; the file of this user if left out. ``postgresql://`` means psycopg.
        patience_s: how long others' locks are waited for.

    Raises:
        LedgerError: the URL is none, its driver is not installed, or it names a file on a network file system.
    """

    def __init__(self, url: str | None = None, *, patience_s: float = PATIENCE_S) -> None:
        self.url = _parsed(url)
        self._patience_s = patience_s
        self._path: Path | None = None
        options: dict[str, float | str] = {}
        if self.url.get_backend_name() == "sqlite":
            if self.url.database in {None, "", ":memory:"}:
                raise LedgerError(f"{self} keeps nothing: name a file, such as sqlite:////data/ledger.sqlite")
            self._path = Path(str(self.url.database))
            refuse_network(self._path)
            options = {"timeout": patience_s}
        elif self.url.drivername == "postgresql+psycopg" and "options" not in self.url.query:
            waits = f"-c lock_timeout={max(round(patience_s * 1e3), 1)}"
            options = {"connect_timeout": max(round(patience_s), 2), "options": waits}
        try:
            self._engine = create_engine(self.url, connect_args=options)
        except (NoSuchModuleError, ImportError) as error:
            remedy = "pip install 'energy-plugins[ledger]' brings that of PostgreSQL"
            raise LedgerError(f"there is no driver for the ledger {self}: {error}; {remedy}") from error
        except (ArgumentError, TypeError) as error:
            raise LedgerError(f"cannot use the ledger {self}: {error}") from error
        if self._path is not None:
            _prepare_sqlite(self._engine)

    def __str__(self) -> str:
        if self.url.get_backend_name() == "sqlite" and self.url.database:
            return str(self.url.database)
        return self.url.render_as_string(hide_password=True)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a transaction to read in. Raises LedgerError: it cannot be had, or there is no ledger."""
        nothing = LedgerError(f"there is no ledger of this version in {self}: energy-plugins ledger import makes one")
        if self._path is not None and not self._path.exists():
            raise nothing
        with self._errors(), self._engine.begin() as connection:
            if not is_current(connection):
                raise nothing
            yield connection

    def write(self, work: Callable[[Connection], _T]) -> _T:
        """Do ``work`` in one transaction, again from its start where others got in the way, and return what it does.

        Raises:
            LedgerError: it cannot be done; then nothing of it was.
        """
        with self._errors():
            self._make_folder()
            return self._tried(work)

    def close(self) -> None:
        """Close what is open."""
        self._engine.dispose()

    def _make_folder(self) -> None:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _tried(self, work: Callable[[Connection], _T]) -> _T:
        writing = self._engine.execution_options(**{_WRITES: True})
        pause_s, end_s = _PAUSES_S[0], time.monotonic() + self._patience_s
        while True:
            try:
                with writing.begin() as connection:
                    _be_alone(connection)
                    upgrade(connection)
                    return work(connection)
            except DBAPIError as error:
                if not _worth_another_try(error) or time.monotonic() > end_s:
                    raise
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, _PAUSES_S[1])

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise LedgerError(f"cannot use the ledger {self}: {_because(error)}") from error
        except SQLAlchemyError as error:
            raise LedgerError(f"cannot use the ledger {self}: {error}") from error
        except OSError as error:
            raise LedgerError(f"cannot use the ledger {self}: {error.strerror or error}") from error


def _parsed(url: str | None) -> URL:
    if url is None:
        return URL.create("sqlite", database=str(default_ledger()))
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        expected = (
            "expected one as SQLAlchemy takes it, such as postgresql://HOST/NAME or sqlite:////data/ledger.sqlite"
        )
        raise LedgerError(f"--url is no URL of a database; {expected}") from error
    if parsed.drivername in {"postgresql", "postgres"}:
        return parsed.set(drivername="postgresql+psycopg")
    return parsed


def _prepare_sqlite(engine: Engine) -> None:
    """Have SQLite begin transactions when we do, and let readers go on beside a writer."""

    @event.listens_for(engine, "connect")
    def _connect(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself
        with suppress(sqlite3.Error):  # what is wrong with the file is told where a transaction begins
            connection.cursor().execute("PRAGMA journal_mode=WAL")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A transaction that reads before it writes would be refused if another wrote in between.
        immediate = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _be_alone(connection: Connection) -> None:
    """Have others who write wait for the end of this transaction, as SQLite does anyway: it takes milliseconds."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})


def _worth_another_try(error: DBAPIError) -> bool:
    """Tell whether a transaction failed because of another one: the next try sees what that did."""
    state = getattr(error.orig, "sqlstate", None)
    locked = "database is locked" in str(error.orig)
    return isinstance(error, IntegrityError) or state in _AGAIN or locked


def _because(error: DBAPIError) -> str:
    """Return why a database refuses, with what to do about it where that is known."""
    said = " ".join(str(error.orig).split())
    remedies = {
        "lock timeout": "another process is writing and does not end; try again later",
        "database is locked": "another process is writing and does not end; try again later",
        "readonly database": "you may not write there",
        "unable to open": "the folder is not there, or may not be written",
        "is full": "make room, and do it again",
        "disk I/O error": "the disk is full or fails; make room, and do it again",
        "not a database": "the file is something else; move it away, and the ledger is made anew from the spool",
        "malformed": "the file is damaged; move it away, and the ledger is made anew from the spool",
    }
    remedy = next((advice for sign, advice in remedies.items() if sign in said), "")
    return f"{said}; {remedy}" if remedy else said
