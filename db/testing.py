"""Tests that leave nothing in the database, on PostgreSQL and SQLite.

`rolled_back` is for code that is given its session, `savepoints` for code that opens scopes by itself. Both hold one
transaction that is never committed. Each commit of the code under test ends a savepoint inside that transaction, and
runs its on-commit callbacks as usual.

As pytest fixtures::

    pytest_plugins = ["db.testing"]  # conftest.py; or: from db.testing import database, rolled_back_session, ...


    async def test_order(rolled_back_session):
        rolled_back_session.add(Order(id=7))
        await ship(rolled_back_session, order_id=7)  # may commit


    async def test_checkout(savepoint_database):
        await checkout(order_id=7)  # opens scopes, may run isolated() and tasks

One connection has its limits. A constraint that waits for the COMMIT is not checked. Isolated work goes with the
rollback of the scope around it, and sees that scope's uncommitted work. Transactions that would run at the same time
take turns. A cancellation in the middle of a statement closes the connection. Test such things on committed data.

For tests on committed data, `clear` empties a database of its own. `prepare_sqlite` is for one in memory.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing
from importlib import import_module
from importlib.util import find_spec
from typing import Any, overload

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from db.database import Database, S, default_database
from db.engine import sqlite
from db.engine.clear import drop_all
from db.scope import innermost_place
from db.session.classes import AsyncSession, Session
from db.session.savepoints import InterleavedTransactionsError, SavepointStack
from db.sessions import independent

__all__ = ["InterleavedTransactionsError", "clear", "prepare_sqlite", "rolled_back", "savepoints"]


@overload
def rolled_back() -> AbstractAsyncContextManager[AsyncSession]: ...
@overload
def rolled_back(database: Database[S]) -> AbstractAsyncContextManager[S]: ...
@asynccontextmanager
async def rolled_back(database: Database[Any] | None = None) -> AsyncIterator[Any]:
    """A session whose commits are never permanent, also where the code under test commits.

    ::

        async with rolled_back() as session:
            await ship(session, order_id=7)
        async with rolled_back() as session, scope(session=session):
            await checkout(order_id=7)  # uses session()

    Args:
        database: the database. Default: the default database.
    """
    chosen = database or default_database()
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(_outer_transaction(chosen))
        with chosen.bound_to(connection):
            session = await stack.enter_async_context(independent(chosen))
        yield session


@asynccontextmanager
async def savepoints(*databases: Database[Any]) -> AsyncIterator[None]:
    """A block in which every scope joins one transaction of its database, through savepoints. No commit is permanent.

    ::

        async with savepoints():
            await client.post("/orders", json={"id": 7})  # SessionMiddleware commits
            assert await isolated(order_exists, 7)

    So do scopes that other tasks open, `isolated()` and `independent()`, anywhere in this process.

    Args:
        databases: the databases. Default: the default database. A synchronous twin has a connection of its own, and
            does not see the other's work: name the twin as well where it is used.

    Raises:
        InterleavedTransactionsError: in the code under test, where two transactions wait for each other.
    """
    async with AsyncExitStack() as stack:
        for database in databases or (default_database(),):
            connection = await stack.enter_async_context(_outer_transaction(database))
            stack.enter_context(database.bound_to(connection))
        yield


async def clear(database: Database[Any], *, schemas: Iterable[str] = ()) -> None:
    """Drop all tables, views and enum types of a test's database, and commit that.

    ::

        await clear(database, schemas=["billing"])

    This includes the ledger's table, which `tandem migrate` makes again.

    Args:
        database: the database. There is no default, as nothing brings back what is dropped.
        schemas: further schemas than the default one.
    """
    async with independent(database) as session:
        if isinstance(session, Session):
            await asyncio.to_thread(lambda: drop_all(session.connection(), schemas))
            await asyncio.to_thread(session.commit)
        else:
            await (await session.connection()).run_sync(drop_all, schemas)
            await session.commit()


def prepare_sqlite(engine: AsyncEngine | Engine) -> None:
    """Give an engine of your own the transactions that `Database(url)` gives to a SQLite file.

    ::

        engine = create_async_engine("sqlite+aiosqlite://")
        prepare_sqlite(engine)

    The driver alone begins its transactions late: DDL and savepoints are then not part of them. Call this before the
    engine's first connection.
    """
    sync_engine = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
    if sync_engine.dialect.name != "sqlite":
        raise ValueError(f"this engine is for {sync_engine.dialect.name}, and not for SQLite")
    sqlite.prepare(sync_engine, busy_timeout=10.0)


@asynccontextmanager
async def _outer_transaction(database: Database[Any]) -> AsyncIterator[AsyncConnection | Connection]:
    async with independent(database) as outer:
        if isinstance(outer, Session):
            connection: Any = await asyncio.to_thread(outer.connection)
            stack = SavepointStack(connection, innermost_place)
        else:
            connection = await outer.connection()
            stack = SavepointStack(connection.sync_connection, innermost_place)
        with closing(stack):
            yield connection


def _the_database() -> Database[Any]:
    """The database under test. Define a fixture of this name for another database than the default one."""
    return default_database()


async def _a_rolled_back_session(database: Database[Any]) -> AsyncIterator[AsyncSession]:
    """A session whose commits are never permanent. See `db.testing.rolled_back`."""
    try:
        async with rolled_back(database) as session:
            yield session
    finally:
        # The next test may run on another event loop.
        await database.dispose()


async def _a_database_in_savepoints(database: Database[Any]) -> AsyncIterator[Database[Any]]:
    """The database, with every scope in one transaction that is never committed. See `db.testing.savepoints`."""
    try:
        async with savepoints(database):
            yield database
    finally:
        await database.dispose()


if "pytest" in sys.modules:
    # pytest-asyncio's strict mode needs its own decorator on a fixture. anyio takes both.
    _async_fixture = import_module("pytest_asyncio" if find_spec("pytest_asyncio") else "pytest").fixture

    database = import_module("pytest").fixture(_the_database)
    rolled_back_session = _async_fixture(_a_rolled_back_session)
    savepoint_database = _async_fixture(_a_database_in_savepoints)
