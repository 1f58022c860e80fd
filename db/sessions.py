"""Functions that give a session, or end its transaction early."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import copy_context
from typing import Any, Literal, ParamSpec, TypeVar, overload

from db.aio.cancellation import shielded
from db.aio.contexts import run_in_context
from db.aio.threads import in_thread
from db.database import Database, S, default_database
from db.errors import TransactionOpenError
from db.scope import (
    ScopedSession,
    current_scope,
    enter_block,
    leave_block,
    open_scope,
    refuse_nested_writer,
    scope,
)
from db.session.callbacks import BeforeCommit, OnCommit
from db.session.classes import AsyncSession, Session, joins_transaction, sync_session_of

P = ParamSpec("P")
R = TypeVar("R")

Current = Literal["commit", "rollback", "append", "join", "raise", "savepoint"]


def in_scope() -> bool:
    """Whether a scope is open here.

    ::

        if not in_scope():
            raise RuntimeError("call this inside of a request or a task")
    """
    return open_scope() is not None


@overload
async def session() -> AsyncSession: ...
@overload
async def session(database: Database[S]) -> S: ...
async def session(database: Database[Any] | None = None) -> Any:
    """The session of the scope that is open here, for the default database or another. The same at every call.

    ::

        async with scope():
            (await session()).add(Order(id=7))

    The session takes a connection with its first statement. The scope commits it; call `commit` to do so early.

    Raises:
        NoScopeError: no scope is open here.
        ScopeEndedError: the scope that this code was started in has ended.
        WrongLoopError: the scope, or the database's engine, belongs to another event loop.
        NestedWriterError: an enclosing scope holds SQLite's write lock.
    """
    return await current_scope().session(database or default_database())


@overload
def atomic(current: Current = "commit") -> AbstractAsyncContextManager[AsyncSession]: ...
@overload
def atomic(current: Current = "commit", *, database: Database[S]) -> AbstractAsyncContextManager[S]: ...
@asynccontextmanager
async def atomic(current: Current = "commit", *, database: Database[Any] | None = None) -> AsyncIterator[Any]:
    """A block in its own transaction: committed when the block ends, rolled back when it raises.

    ::

        async with scope():
            async with atomic("savepoint"):
                (await session()).add(Order(id=7))

    Outside of a scope it opens a scope for the block.

    Args:
        current: how to treat a transaction that is open already: ``"commit"`` it first (default), ``"rollback"`` it
            first, ``"append"`` the block to it and end both together, ``"join"`` it (its opener ends it), ``"raise"``
            `TransactionOpenError`, or put the block in a ``"savepoint"`` of it.
        database: the database. Default: the default database.

    Raises:
        TransactionOpenError: `current` is ``"raise"``, and a transaction is open.
    """
    chosen: Database[Any] = database or default_database()
    async with scope(join=True) as here:
        scoped = await here.scoped_session(chosen)
        own = await here.session(chosen)
        if scoped.has_begun:
            match current:
                case "join":
                    yield own
                    return
                case "savepoint":
                    async with _savepoint(own):
                        yield own
                    return
                case "commit":
                    await scoped.commit()
                case "rollback":
                    await scoped.rollback()
                case "raise":
                    raise TransactionOpenError
        try:
            yield own
        except BaseException:
            await scoped.rollback(cancel_running=True)
            raise
        await scoped.commit()


async def isolated(fn: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run `fn` in a new scope with its own connections. It is committed when `fn` returns, independently of the caller.

    For concurrent queries::

        first, second = await asyncio.gather(isolated(load, 1), isolated(load, 2))

    `fn` has a copy of the caller's context variables, so the caller does not see what `fn` sets.

    Raises:
        NestedWriterError: on SQLite, where the caller's scope holds the write lock.
    """
    return await run_in_context(_in_new_scope(fn, *args, **kwargs), copy_context())


async def _in_new_scope(fn: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs) -> R:
    async with scope():
        return await fn(*args, **kwargs)


@overload
def independent() -> AbstractAsyncContextManager[AsyncSession]: ...
@overload
def independent(database: Database[S]) -> AbstractAsyncContextManager[S]: ...
@asynccontextmanager
async def independent(database: Database[Any] | None = None) -> AsyncIterator[Any]:
    """A session outside of any scope. Commit it yourself; leaving rolls back uncommitted work and closes the session.

    ::

        async with independent() as session:
            session.add(Visit(page="/"))
            await session.commit()

    Raises:
        NestedWriterError: on SQLite, where an enclosing scope holds the write lock.
    """
    chosen = database or default_database()
    refuse_nested_writer(chosen, open_scope())
    opened, lease = chosen.open_session(await chosen.session_arguments())
    scoped = ScopedSession(chosen, opened, lease)
    inner = sync_session_of(opened)
    inner.owner = scoped
    # Only in a test's transaction does it matter which code is inside of which.
    inner.place = block = enter_block() if joins_transaction(opened) else None
    try:
        yield opened
    finally:
        if block is not None:
            leave_block(block)
        await scoped.end_shielded()


async def commit(database: Database[Any] | None = None) -> None:
    """Commit one database, or all that this scope has used, now. The sessions go on in new transactions.

    ::

        async with scope():
            (await session()).add(Order(id=7))
            await commit()
            await call_api(7)  # the order exists, whatever happens here

    Raises:
        NoScopeError: no scope is open here.
        ConcurrentUseError: another coroutine's statement is in flight.
        PartialCommitError: one database committed, a later one failed.
    """
    await current_scope().commit(database)


async def rollback(database: Database[Any] | None = None) -> None:
    """Roll back one database, or all that this scope has used, now. The sessions go on in new transactions.

    ::

        async with scope():
            (await session()).add(Order(id=7))
            await rollback()  # the order is not saved

    Raises:
        NoScopeError: no scope is open here.
        ConcurrentUseError: another coroutine's statement is in flight.
    """
    await current_scope().rollback(database, cancel_running=False)


async def close(database: Database[Any] | None = None) -> None:
    """Release the connection of one database, or of all, now. Uncommitted work is rolled back.

    ::

        orders = await (await session()).scalars(select(Order))
        await close()  # the connection is free while the API answers
        await call_slow_api(orders)

    The next use of a session calls `before_session`, and connects to the host of then.

    Raises:
        NoScopeError: no scope is open here.
        ConcurrentUseError: another coroutine's statement is in flight.
    """
    await current_scope().close(database)


def before_commit(callback: BeforeCommit, database: Database[Any] | None = None) -> None:
    """Call `await callback(session)` before the next COMMIT of this scope's session.

    ::

        before_commit(check_stock)  # an error of check_stock rolls the transaction back

    The callback refuses the commit by raising. It belongs to the savepoint that is open now, and is not called on
    rollback.

    Raises:
        NoScopeError: no scope is open here.
    """
    current_scope().before_commit(callback, database or default_database())


def on_commit(callback: OnCommit, database: Database[Any] | None = None) -> None:
    """Call `callback()`, and await it if it is awaitable, once this scope's session has committed.

    ::

        on_commit(clear_cache)  # not called if the transaction is rolled back

    The callback belongs to the savepoint that is open now, and vanishes with a rollback or `close()`. An error in it is
    logged, as the transaction is committed. It cannot be cancelled, so give it a time limit of its own.

    Raises:
        NoScopeError: no scope is open here.
    """
    current_scope().on_commit(callback, database or default_database())


@asynccontextmanager
async def _savepoint(session: AsyncSession | Session) -> AsyncIterator[None]:
    if isinstance(session, AsyncSession):
        async with session.begin_nested():
            yield
        return
    # A cancellation cannot stop a thread, so each step is waited for.
    savepoint = await shielded(in_thread(session.begin_nested))
    try:
        yield
    except BaseException:
        await shielded(in_thread(savepoint.rollback))
        raise
    await shielded(in_thread(savepoint.commit))
