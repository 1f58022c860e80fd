"""Tests that leave nothing in the database, on PostgreSQL and SQLite.

`rolled_back` is for code that is given its session, `savepoints` for code that opens scopes by itself. Both hold one
transaction that is never committed; each commit of the code under test ends a savepoint inside it, and is followed by
its on-commit callbacks like any other.

As pytest fixtures::

    pytest_plugins = ["db.testing"]  # conftest.py; or: from db.testing import database, rolled_back_session, ...


    async def test_order(rolled_back_session):
        rolled_back_session.add(Order(id=7))
        await ship(rolled_back_session, order_id=7)  # may commit


    async def test_checkout(savepoint_database):
        await checkout(order_id=7)  # opens scopes, may run isolated() and tasks

What one connection cannot show: a constraint that waits for the COMMIT is not checked; isolated work goes with the
rollback of the scope around it, and sees what that has not committed; transactions that would run at the same time take
turns; one that a cancellation stops in mid-statement takes the connection with it. Test such things on committed data.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, overload

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from db.database import Database, S, default_database
from db.scope import open_scope
from db.session.classes import AsyncSession, Session
from db.session.savepoints import InterleavedTransactionsError, SavepointStack
from db.sessions import independent

__all__ = ["InterleavedTransactionsError", "rolled_back", "savepoints"]


@overload
def rolled_back() -> AbstractAsyncContextManager[AsyncSession]: ...
@overload
def rolled_back(database: Database[S]) -> AbstractAsyncContextManager[S]: ...
@asynccontextmanager
async def rolled_back(database: Database[Any] | None = None) -> AsyncIterator[Any]:
    """A session that never commits for good, also when the code under test commits it.

    ::

        async with rolled_back() as session:
            await ship(session, order_id=7)
        async with rolled_back() as session, scope(session=session):
            await checkout(order_id=7)  # uses session()

    Args:
        database: default: the default database.
    """
    chosen = database or default_database()
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(_outer_transaction(chosen))
        with chosen.bound_to(connection):
            session = await stack.enter_async_context(independent(chosen))
        yield session


@asynccontextmanager
async def savepoints(*databases: Database[Any]) -> AsyncIterator[None]:
    """Inside, every scope joins one transaction of its database, through savepoints: whatever commits, nothing stays.

    ::

        async with savepoints():
            await client.post("/orders", json={"id": 7})  # SessionMiddleware commits
            assert await isolated(order_exists, 7)

    Also scopes that other tasks open, `isolated()` and `independent()`, wherever they run in this process.

    Args:
        databases: default: the default database. A synchronous twin has its own connection, and so sees nothing of the
            other: name it too where it is used.

    Raises:
        InterleavedTransactionsError: in the code under test, where two transactions wait for each other.
    """
    async with AsyncExitStack() as stack:
        for database in databases or (default_database(),):
            connection = await stack.enter_async_context(_outer_transaction(database))
            stack.enter_context(database.bound_to(connection))
        yield


@asynccontextmanager
async def _outer_transaction(database: Database[Any]) -> AsyncIterator[AsyncConnection | Connection]:
    async with independent(database) as outer:
        if isinstance(outer, Session):
            connection: Any = await asyncio.to_thread(outer.connection)
            SavepointStack(connection, open_scope)
        else:
            connection = await outer.connection()
            SavepointStack(connection.sync_connection, open_scope)
        yield connection


def _the_database() -> Database[Any]:
    """The database under test. Define a fixture of this name to have another than the default one."""
    return default_database()


async def _a_rolled_back_session(database: Database[Any]) -> AsyncIterator[AsyncSession]:
    """A session that never commits for good, also when the code under test commits it: `db.testing.rolled_back`."""
    try:
        async with rolled_back(database) as session:
            yield session
    finally:
        # The next test may have an event loop of its own.
        await database.dispose()


async def _a_database_in_savepoints(database: Database[Any]) -> AsyncIterator[Database[Any]]:
    """The database; every scope joins one transaction that is never committed: `db.testing.savepoints`."""
    try:
        async with savepoints(database):
            yield database
    finally:
        await database.dispose()


if "pytest" in sys.modules:
    # pytest-asyncio's own mark, without which its strict mode leaves a fixture alone; anyio takes both.
    _async_fixture = import_module("pytest_asyncio" if find_spec("pytest_asyncio") else "pytest").fixture

    database = import_module("pytest").fixture(_the_database)
    rolled_back_session = _async_fixture(_a_rolled_back_session)
    savepoint_database = _async_fixture(_a_database_in_savepoints)
