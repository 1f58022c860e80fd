"""Databases without a ledger, and a default database with an empty one, of each kind that can hold one."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import db
from tests.servers import Databases, as_url


@pytest.fixture
def bare_postgres(databases: Databases) -> Iterator[str]:
    """A PostgreSQL database without anything: `postgresql+asyncpg://...`."""
    with databases.bare() as url:
        yield as_url(url, "asyncpg")
        databases.assert_no_open_transaction(url)


@pytest.fixture(autouse=True)
def _long_lock_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow disk is not taken for a lock."""
    monkeypatch.setattr("worker.ledger.lock_wait._LOCK_WAIT", 20.0)


@pytest.fixture(params=["postgresql", "psycopg", "sqlite"])
async def database(
    request: pytest.FixtureRequest, database_url: str, sync_database_url: str, sqlite_url: str
) -> AsyncIterator[db.Database[Any]]:
    """The default database, with an empty ledger; PostgreSQL also through a synchronous driver."""
    urls = {"postgresql": database_url, "sqlite": sqlite_url, "psycopg": sync_database_url}
    database: db.Database[Any] = db.Database(urls[request.param], default=True)
    yield database
    await database.dispose()
    db.set_default_database(None)


@pytest.fixture
async def postgres_database(database_url: str) -> AsyncIterator[db.Database[Any]]:
    """The same on PostgreSQL alone."""
    database: db.Database[Any] = db.Database(database_url, default=True)
    yield database
    await database.dispose()
    db.set_default_database(None)


@pytest.fixture(params=["asyncpg", "psycopg", "aiosqlite", "pysqlite"])
async def bare_database(
    request: pytest.FixtureRequest, bare_postgres: str, tmp_path: Path
) -> AsyncIterator[db.Database[Any]]:
    """A database without a ledger, through each driver."""
    urls = {
        "asyncpg": bare_postgres,
        "psycopg": bare_postgres.replace("asyncpg", "psycopg"),
        "aiosqlite": f"sqlite+aiosqlite:///{tmp_path}/bare.sqlite",
        "pysqlite": f"sqlite+pysqlite:///{tmp_path}/bare.sqlite",
    }
    database: db.Database[Any] = db.Database(urls[request.param])
    yield database
    await database.dispose()
