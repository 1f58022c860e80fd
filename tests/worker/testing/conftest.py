"""Tests that use the kit as a project does: the default database in savepoints, and jobs in memory."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text

import db
import db.testing
from worker import testing

NOTES = "CREATE TABLE IF NOT EXISTS note (id {serial} PRIMARY KEY, words text UNIQUE)"


@pytest.fixture(params=["postgresql", "sqlite"])
async def database(
    request: pytest.FixtureRequest, database_url: str, sqlite_url: str
) -> AsyncIterator[db.Database[Any]]:
    """The default database, with a ledger and the table `note`."""
    is_sqlite = request.param == "sqlite"
    database: db.Database[Any] = db.Database(sqlite_url if is_sqlite else database_url, default=True)
    async with db.scope():
        await (await db.session()).execute(text(NOTES.format(serial="integer" if is_sqlite else "serial")))
    yield database
    await database.dispose()


@pytest.fixture
async def savepoints(database: db.Database[Any]) -> AsyncIterator[None]:
    """The default database in one transaction that is never committed."""
    async with db.testing.savepoints(database):
        yield


@pytest.fixture
async def jobs(savepoints: None) -> AsyncIterator[testing.Jobs]:
    """The jobs of a test."""
    async with testing.jobs(registry="tests.worker.testing.registry") as jobs:
        yield jobs
