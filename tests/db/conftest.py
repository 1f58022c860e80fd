"""A default database with one table, on PostgreSQL and on SQLite, and ways to count its rows from outside."""

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from typing import Any, Protocol

import pytest
from sqlalchemy import make_url, text

import db
from tests.servers import Observer
from tests.waiting import eventually

INSERT = text("INSERT INTO note (words) VALUES (:words)")


class Count(Protocol):
    """Counts the committed rows of the table `note`."""

    async def __call__(self) -> int: ...


@pytest.fixture(autouse=True)
def _no_default_left() -> Any:
    """A default database is for one test."""
    yield
    db.set_default_database(None)


@pytest.fixture
async def table(postgres: Observer) -> None:
    """The tables `note` and `comment` in PostgreSQL, and `reply`, whose references are checked at COMMIT."""
    await postgres.execute("CREATE TABLE note (id serial PRIMARY KEY, words text UNIQUE)")
    await postgres.execute("CREATE TABLE comment (id serial PRIMARY KEY, note_id int REFERENCES note)")
    await postgres.execute("CREATE TABLE reply (note_id int REFERENCES note DEFERRABLE INITIALLY DEFERRED)")


@pytest.fixture
async def database(database_url: str, table: None, postgres: Observer) -> AsyncIterator[db.Database]:
    """The default database: PostgreSQL, through asyncpg."""
    database = db.Database(database_url, default=True)
    yield database
    await database.dispose()
    await eventually(lambda: postgres.backends("active"), equals=0)


@pytest.fixture
async def sync_database(database: db.Database) -> db.Database[db.Session]:
    """The same database through psycopg; it is the default one's twin, and disposed with it."""
    return database.sync


@pytest.fixture
def rows(postgres: Observer) -> Count:
    """Counts the rows of `note` through a connection of its own."""

    async def count() -> int:
        return int(await postgres.fetchval("SELECT count(*) FROM note"))

    return count


@pytest.fixture
async def sqlite_database(sqlite_url: str) -> AsyncIterator[db.Database]:
    """The default database: a SQLite file."""
    with closing(sqlite3.connect(str(make_url(sqlite_url).database))) as connection:
        connection.execute("CREATE TABLE note (id INTEGER PRIMARY KEY, words TEXT UNIQUE)")
        connection.commit()
    database = db.Database(sqlite_url, default=True)
    yield database
    await database.dispose()


@pytest.fixture
def sqlite_rows(sqlite_url: str) -> Callable[[], int]:
    """Counts the rows of `note` in the file, past the database under test."""

    def count() -> int:
        with closing(sqlite3.connect(str(make_url(sqlite_url).database))) as connection:
            return int(connection.execute("SELECT count(*) FROM note").fetchone()[0])

    return count


async def insert(words: str) -> None:
    """Insert one row through the scope that is open here."""
    session = await db.session()
    await session.execute(INSERT, {"words": words})
