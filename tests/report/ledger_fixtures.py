"""Ledgers to test with, of SQLite and of a PostgreSQL server of our own: ``pytest_plugins = ["ledger_fixtures"]``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _postgres import postgres, postgres_missing
from sqlalchemy import create_engine, text


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """Give the URL of a PostgreSQL server's database."""
    if missing := postgres_missing():
        pytest.skip(missing)
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Give the URL of a ledger that is still to be made."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger' / 'ledger.sqlite'}"
    found: str = request.getfixturevalue("server")
    engine = create_engine(found)
    with engine.begin() as connection:
        for table in ("energy_run_gpus", "energy_runs", "energy_ledger_version"):
            connection.execute(text(f"DROP TABLE IF EXISTS {table}"))
    engine.dispose()
    return found


@pytest.fixture
def sql(url: str) -> Callable[..., list[tuple[object, ...]]]:
    """Give a function that runs statements on the ledger behind its back, and returns what the last one found."""

    def run(*statements: str) -> list[tuple[object, ...]]:
        engine = create_engine(url)
        with engine.begin() as connection:
            found = [connection.execute(text(statement)) for statement in statements][-1]
            rows = [tuple(row) for row in found] if found.returns_rows else []
        engine.dispose()
        return rows

    return run
