"""The scope: a unit of work, and the only code that commits, rolls back and closes.

1. `scope()` opens one; everything below it, child tasks too, gets the same session of each database.
2. Leaving it normally runs the before-commit callbacks, commits, closes, then runs the on-commit callbacks.
3. Leaving it by any exception, a cancellation included, rolls back and closes.
4. Ending runs in a task of its own: whoever cancels the caller meanwhile waits for the truth.
"""

import asyncio
import inspect
import logging
from collections.abc import Callable
from contextvars import ContextVar
from enum import Enum
from types import TracebackType
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession as AnyAsyncSession
from sqlalchemy.orm import SessionTransaction

from db.callbacks import BeforeCommit, Callbacks, OnCommit, OnCommitBatch
from db.cancellation import to_the_end
from db.database import Database, default_database, is_default
from db.engines import OpenEngine
from db.errors import NestedWriterError, NoScopeError, PartialCommitError, ScopeEndedError, WrongLoopError
from db.guarded import AsyncSession, Session, discard, send_close, send_commit, send_rollback, sync_part

logger = logging.getLogger("db")

S = TypeVar("S", bound=AsyncSession | Session)
T = TypeVar("T")

_ROLLBACK_LIMIT = 5.0  # seconds; then the connection is thrown away, which rolls back as well


class Unit:
    """One session of a scope, from its first use to the scope's end."""

    def __init__(self, database: Database[Any], session: AsyncSession | Session, lease: OpenEngine | None) -> None:
        self.database = database
        self.session = session
        self.has_committed = False
        self._lease = lease
        self._loop = asyncio.get_running_loop()

    @property
    def owned(self) -> bool:
        """Whether the scope made the session, and so ends it."""
        return self._lease is not None

    @property
    def callbacks(self) -> Callbacks:
        return self.session.callbacks

    async def commit(self) -> None:
        """Commit early; the session then goes on in a new transaction."""
        self.session.use.refuse_concurrent_end()
        await to_the_end(self._commit())

    async def rollback(self) -> None:
        """Roll back early; the session then goes on in a new transaction."""
        self.session.use.refuse_concurrent_end()
        await to_the_end(self._rollback())

    async def close(self) -> None:
        """Roll back what was not committed and give the connection back; the session takes a new one when next used."""
        self.session.use.refuse_concurrent_end()
        await to_the_end(self._close())

    def commit_in_thread(self, commit: Callable[[], None]) -> None:
        """A `Session.commit()` in a worker thread: the callbacks run on the loop, the COMMIT here."""
        self._on_loop(self.before_commit())
        commit()
        self.has_committed = True
        self._on_loop(self._announce())

    async def _commit(self) -> None:
        await self.before_commit()
        await self.send_commit()
        await self._announce()

    async def _announce(self) -> None:
        await run_on_commit(self.callbacks.take_on_commit())

    async def before_commit(self) -> None:
        for callback in self.callbacks.take_before_commit():
            await callback(self.session)

    async def send_commit(self) -> None:
        if self.session.in_transaction():
            await send_commit(self.session)
            self.has_committed = True

    async def _rollback(self) -> None:
        self.callbacks.drop()
        try:
            async with asyncio.timeout(_ROLLBACK_LIMIT):
                await send_rollback(self.session)
        except Exception as error:  # noqa: BLE001 - the transaction ends all the same, with its connection
            logger.warning(
                "rollback on %s failed (%s): its connection is thrown away",
                self.database.name,
                type(error).__name__,
            )
            await discard(self.session)

    async def _close(self) -> None:
        if self.session.in_transaction():
            await self._rollback()
        self.callbacks.drop()
        await send_close(self.session)

    async def finish(self) -> None:
        """`end`, protected from cancellation."""
        await to_the_end(self.end())

    async def end(self) -> None:
        """It is over: roll back what is open, close, and let nobody use the session again."""
        try:
            await self.session.use.evict()
            await self._close()
        finally:
            self.session.use.ended = True
            if self._lease is not None:
                await self._lease.give_back()

    def _on_loop(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


class _State(Enum):
    OPEN = "open"
    ENDED = "ended"


class Scope:
    """The sessions that end together. Opened by :func:`scope`."""

    def __init__(self, parent: "Scope | None") -> None:
        self.parent = parent
        self._state = _State.OPEN
        self._units: dict[Database[Any], Unit] = {}
        # Callbacks may be made before there is a session to run them around.
        self._callbacks: dict[Database[Any], Callbacks] = {}
        self._opening = asyncio.Lock()
        self._loop = asyncio.get_running_loop()

    @property
    def is_open(self) -> bool:
        return self._state is _State.OPEN

    @property
    def units(self) -> tuple[Unit, ...]:
        """In the order in which they commit: that of their first use, the default database's last."""
        return tuple(sorted(self._units.values(), key=lambda unit: is_default(unit.database)))

    @property
    def has_committed(self) -> bool:
        """Whether something was committed already: while the scope is open, early."""
        return any(unit.has_committed for unit in self._units.values())

    async def session(self, database: Database[S]) -> S:
        """The scope's session of `database`: the same one at every call."""
        return (await self.unit(database)).session  # type: ignore[return-value]  # keyed by its database

    async def unit(self, database: Database[Any]) -> Unit:
        if asyncio.get_running_loop() is not self._loop:
            raise WrongLoopError("this scope belongs to another event loop: open one of its own there")
        unit = self._units.get(database)
        if unit is not None:
            return unit
        async with self._opening:
            if database not in self._units:
                self._refuse_nested_writer(database)
                self._adopt(database, *await database.open_session())
            return self._units[database]

    def known_unit(self, database: Database[Any]) -> Unit | None:
        return self._units.get(database)

    def before_commit(self, callback: BeforeCommit, database: Database[Any]) -> None:
        self._callbacks_of(database).add_before_commit(callback, self._savepoint(database))

    def on_commit(self, callback: OnCommit, database: Database[Any]) -> None:
        self._callbacks_of(database).add_on_commit(callback, self._savepoint(database))

    def on_commit_batch(self, callback: OnCommitBatch[T], items: list[T], database: Database[Any]) -> None:
        """Call `callback` once after the COMMIT, with the items of all who asked for it and were committed."""
        self._callbacks_of(database).add_on_commit_batch(callback, items, self._savepoint(database))

    def _callbacks_of(self, database: Database[Any]) -> Callbacks:
        return self._callbacks.setdefault(database, Callbacks())

    def _savepoint(self, database: Database[Any]) -> SessionTransaction | None:
        unit = self._units.get(database)
        return None if unit is None else sync_part(unit.session).get_nested_transaction()

    def lend(self, database: Database[Any], session: AsyncSession | Session) -> None:
        """Use a session of the caller's, which this scope does not end."""
        self._adopt(database, session, None)

    def _adopt(self, database: Database[Any], session: AsyncSession | Session, lease: OpenEngine | None) -> None:
        unit = Unit(database, session, lease)
        self._units[database] = unit
        if unit.owned:
            session.owner = unit
            sync_part(session).callbacks = self._callbacks_of(database)

    def _refuse_nested_writer(self, database: Database[Any]) -> None:
        enclosing = self.parent if database.is_sqlite else None
        while enclosing is not None:
            unit = enclosing.known_unit(database)
            if unit is not None and unit.session.in_transaction():
                raise NestedWriterError
            enclosing = enclosing.parent

    async def commit(self) -> None:
        """Commit all now, then tell; the scope goes on, its sessions in new transactions.

        Raises:
            PartialCommitError: one database committed, a later one failed.
        """
        await to_the_end(self._commit())

    async def rollback(self) -> None:
        """Roll back all now, whatever is in flight; the scope goes on, its sessions in new transactions."""
        await to_the_end(self._rollback())

    async def _commit(self) -> None:
        await run_on_commit(await self._commit_all())

    async def _rollback(self) -> None:
        for callbacks in self._callbacks.values():
            callbacks.drop()
        for unit in self.units:
            if unit.owned:
                await unit.session.use.evict()
                await unit.rollback()

    async def end(self, error: BaseException | None) -> None:
        """Commit or roll back, then always close, then tell."""
        if not self._units and not any(self._callbacks.values()):
            self._state = _State.ENDED
            return
        await to_the_end(self._end(error))

    async def _end(self, error: BaseException | None) -> None:
        due: list[OnCommit] = []
        try:
            if error is None:
                due = await self._commit_all()
        finally:
            self._state = _State.ENDED
            await self._end_all()
        await run_on_commit(due)

    async def _commit_all(self) -> list[OnCommit]:
        await self._run_before_commit()
        due: list[OnCommit] = []
        committed: list[str] = []
        for unit in self.units:
            if not unit.owned:
                continue
            try:
                await unit.send_commit()
            except Exception as error:
                if not committed:
                    raise
                await run_on_commit(due)
                raise PartialCommitError(committed, unit.database.name) from error
            committed.append(unit.database.name)
            due += unit.callbacks.take_on_commit()
        return due + [callback for each in self._callbacks.values() for callback in each.take_on_commit()]

    async def _run_before_commit(self) -> None:
        for database, callbacks in list(self._callbacks.items()):
            if callbacks.wants_session:
                await self.unit(database)
        for unit in self.units:
            unit.session.use.refuse_concurrent_end()
            await unit.before_commit()

    async def _end_all(self) -> None:
        for unit in self.units:
            if unit.owned:
                try:
                    await unit.end()
                except Exception as error:  # noqa: BLE001 - how the transaction ended is known by now; close the others
                    logger.warning("closing a session failed: %s: %s", type(error).__name__, error)


_current: ContextVar[Scope | None] = ContextVar("db.scope", default=None)


def open_scope() -> Scope | None:
    """The innermost scope that is open here, or None."""
    current = _current.get()
    while current is not None and not current.is_open:
        current = current.parent
    return current


def current_scope() -> Scope:
    """The scope that is open here.

    Raises:
        NoScopeError: there is none.
        ScopeEndedError: the one this code was started in has ended.
    """
    current = _current.get()
    if current is None:
        raise NoScopeError
    if not current.is_open:
        raise ScopeEndedError
    return current


class scope:  # noqa: N801 - used as a function
    """Open a unit of work: ``async with scope():``.

    Args:
        join: use the scope that is open here, if there is one; whoever opened it ends it.
        session: a session of the caller's for the default database (or `database`), which the scope uses and
            does not end: no commit, no rollback, no close, and no on-commit callbacks.
        database: whose session `session` is.
    """

    def __init__(
        self,
        *,
        join: bool = False,
        session: AsyncSession | Session | None = None,
        database: Database[Any] | None = None,
    ) -> None:
        self._join = join
        self._session = session
        self._database = database
        self._scope: Scope | None = None

    async def __aenter__(self) -> Scope:
        enclosing = open_scope()
        if self._join and enclosing is not None:
            return enclosing
        self._scope = Scope(enclosing)
        if self._session is not None:
            self._scope.lend(self._database or default_database(), _ours(self._session))
        # No token: an async generator may be closed in another context, where a token is refused.
        _current.set(self._scope)
        return self._scope

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._scope is None:
            return
        ending, self._scope = self._scope, None
        try:
            await ending.end(error)
        finally:
            if _current.get() is ending:
                _current.set(ending.parent)


async def run_on_commit(callbacks: list[OnCommit]) -> None:
    """Tell everybody, whatever one of them says: the commit has happened, so their errors are not the caller's."""
    for callback in callbacks:
        try:
            told = callback()
            if inspect.isawaitable(told):
                await told
        except Exception:
            logger.exception("an on_commit callback failed; the transaction is committed")


def _ours(session: Any) -> AsyncSession | Session:
    if not isinstance(session, AsyncSession | Session):
        kind = "AsyncSession" if isinstance(session, AnyAsyncSession) else "Session"
        raise TypeError(f"scope(session=...) takes a db.{kind}: make it with db.testing, or class_=db.{kind}")
    return session
