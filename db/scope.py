"""The scope: a unit of work, and the only code that commits, rolls back and closes.

1. `scope()` opens one; everything below it, child tasks too, gets the same session of each database.
2. Leaving it normally runs the before-commit callbacks, commits, closes, then runs the on-commit callbacks.
3. Leaving it by any exception, a cancellation included, rolls back and closes.
4. Ending runs in a task of its own: whoever cancels the caller meanwhile waits for the truth. Only what comes before
   the first COMMIT, the pending statements and the callbacks that may refuse, can still be cancelled.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from enum import Enum
from types import TracebackType
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession as AnyAsyncSession
from sqlalchemy.orm import SessionTransaction

from db.aio.cancellation import to_the_end
from db.database import Database, default_database, is_default
from db.errors import (
    NestedWriterError,
    NoScopeError,
    PartialCommitError,
    ScopeEndedError,
    UnownedSessionError,
    WrongLoopError,
)
from db.session.callbacks import BeforeCommit, BeforeCommitBatch, Callbacks, Entry, OnCommit, OnCommitBatch
from db.session.classes import AsyncSession, Session, sync_part
from db.session.owner import Unit, run_on_commit
from db.session.waiting_callbacks import WaitingCallbacks

__all__ = ["Scope", "Unit", "current_scope", "open_scope", "refuse_nested_writer", "scope"]

logger = logging.getLogger("db")

S = TypeVar("S", bound=AsyncSession | Session)
T = TypeVar("T")


class _State(Enum):
    OPEN = "open"
    ENDED = "ended"


_OPEN, _ENDED = _State  # read often: CPython 3.11 takes 100 ns to read an enum's member, and 7 to read a global


class Scope:
    """The sessions that end together. Opened by :func:`scope`."""

    def __init__(self, parent: "Scope | None") -> None:
        self.parent = parent
        self._state = _OPEN
        self.units: tuple[Unit, ...] = ()
        """In the order in which they commit: that of their first use, the default database's last."""
        self._owned: tuple[Unit, ...] = ()
        self._by_database: dict[Database[Any], Unit] = {}
        self._waiting: WaitingCallbacks[Database[Any]] = WaitingCallbacks()
        self._had_committed = False
        self.is_lent = False
        """Whether it uses a session of its opener's: then that one's transaction is not its own."""
        self._opening: asyncio.Lock | None = None
        self.loop = asyncio.get_running_loop()
        """The event loop that it was opened on."""

    @property
    def is_open(self) -> bool:
        return self._state is _OPEN

    @property
    def is_unused(self) -> bool:
        """Whether nobody has asked for a session, nor for a callback."""
        return not (self.units or self._waiting)

    @property
    def has_committed(self) -> bool:
        """Whether something was committed already: while the scope is open, early."""
        for unit in self.units:
            if unit.has_committed:
                return True
        return self._had_committed

    @property
    def has_touched(self) -> bool:
        """Whether any of its sessions has begun a transaction that is open still, or was committed."""
        return self.has_committed or any(unit.inner.in_transaction() for unit in self.units)

    @property
    def has_begun(self) -> bool:
        """Whether a rollback would lose something."""
        return any(unit.has_begun for unit in self.units) or any(self._waiting.values())

    async def session(self, database: Database[S]) -> S:
        """The scope's session of `database`: the same one at every call.

        Raises:
            ScopeEndedError: the scope has ended.
            WrongLoopError: the scope, or the database's engine, belongs to another event loop.
            NestedWriterError: an enclosing scope holds SQLite's write lock.
        """
        return (await self.unit(database)).session  # type: ignore[return-value]  # keyed by its database

    async def unit(self, database: Database[Any]) -> Unit:
        if asyncio.get_running_loop() is not self.loop:
            raise WrongLoopError("this scope belongs to another event loop: open one of its own there")
        unit = self._by_database.get(database)
        if unit is not None:
            return unit
        if not database.has_hook:
            return self._open_unit(database, {})
        # While the hook of one is asked, others may want the same session.
        self._opening = self._opening or asyncio.Lock()
        async with self._opening:
            return self._by_database.get(database) or self._open_unit(database, await database.session_arguments())

    def before_commit(self, callback: BeforeCommit, database: Database[Any]) -> None:
        """See :func:`db.before_commit`."""
        self._callbacks_of(database).add_before_commit(callback, self._savepoint(database))

    def before_commit_batch(self, callback: BeforeCommitBatch[T], items: list[T], database: Database[Any]) -> None:
        """Call `callback` once before the COMMIT, with the items of all who asked for it and were not rolled back."""
        self._callbacks_of(database).add_before_commit_batch(callback, items, self._savepoint(database))

    def on_commit(self, callback: OnCommit, database: Database[Any]) -> None:
        """See :func:`db.on_commit`."""
        self._callbacks_of(database).add_on_commit(callback, self._savepoint(database))

    def on_commit_batch(self, callback: OnCommitBatch[T], items: list[T], database: Database[Any]) -> Entry:
        """Call `callback` once after the COMMIT, with the items of all who asked for it and were committed.

        Returns:
            What tells whether that COMMIT has happened: `is_over`.
        """
        return self._callbacks_of(database).add_on_commit_batch(callback, items, self._savepoint(database))

    def lend(self, database: Database[Any], session: AsyncSession | Session) -> None:
        """Use a session of the caller's, which this scope does not end."""
        self.is_lent = True
        self._add(Unit(database, session, None))

    def prepare(self) -> Awaitable[None]:
        """Send what is pending and run the before-commit callbacks now, so that a last statement can follow them.

        Raises:
            ConcurrentUseError: another coroutine's statement is in flight.
        """
        return self._prepare(lambda: self._owned, None)

    async def commit(self, database: Database[Any] | None = None) -> None:
        """Commit now, one database or all, then tell; the sessions go on in new transactions.

        Raises:
            ConcurrentUseError: another coroutine's statement is in flight.
            PartialCommitError: one database committed, a later one failed.
        """
        await self._prepare(lambda: self._chosen(database), database)
        self._seal(self._chosen(database), database)
        await to_the_end(self._commit_early(database))

    async def rollback(self, database: Database[Any] | None = None, *, evicting: bool = True) -> None:
        """Roll back now, one database or all; the sessions go on in new transactions.

        Args:
            database: which one; None for all.
            evicting: end what other coroutines have in flight, instead of raising `ConcurrentUseError`.
        """
        await self._abandon(database, lambda unit: unit.rollback(evicting=evicting))

    async def close(self, database: Database[Any] | None = None) -> None:
        """Roll back what was not committed and give the connections back; the sessions take new ones when next used."""
        await self._abandon(database, Unit.close)

    async def end(self, error: BaseException | None) -> None:
        """Commit or roll back, then always close, then tell."""
        if self.is_unused:
            self._state = _ENDED
            return
        if error is not None:
            await self._end_rolled_back()
            return
        try:
            await self.prepare()
        except BaseException:
            await self._end_rolled_back()
            raise
        await self._end_committed()

    async def _end_committed(self) -> None:
        self._state = _ENDED
        self._seal(self._owned, None)
        if self._owned or self._waiting:
            await to_the_end(self._commit_and_close())

    async def _end_rolled_back(self) -> None:
        self._state = _ENDED
        if self._owned:
            await to_the_end(self._close_all())

    def _seal(self, units: Iterable[Unit], database: Database[Any] | None) -> None:
        """What is made from here on belongs to the next COMMIT."""
        for unit in units:
            unit.callbacks.seal()
        if self._waiting:
            self._waiting.seal(database)

    async def _commit_and_close(self) -> None:
        due: list[OnCommit] = []
        try:
            await self._commit_each(self._owned, due, last=True)
            if self._waiting:
                due += self._waiting.take_on_commit(None)
        finally:
            await self._close_all()
            if due:
                await run_on_commit(due)

    async def _commit_early(self, database: Database[Any] | None) -> None:
        due: list[OnCommit] = []
        try:
            await self._commit_each(self._chosen(database), due)
            if self._waiting:
                due += self._waiting.take_on_commit(database)
        finally:
            await run_on_commit(due)

    async def _prepare(self, chosen: Callable[[], Sequence[Unit]], database: Database[Any] | None) -> None:
        """What may still refuse the COMMIT, or be cancelled: pending statements, then the before-commit callbacks."""
        for unit in chosen():
            unit.use.refuse_if_busy()
        while True:
            if self._waiting:
                for each in self._waiting.that_want_a_session(database):
                    await self.unit(each)
            for unit in chosen():
                await unit.prepare()
            if not self._wants_more(chosen(), database):
                return

    async def _abandon(self, database: Database[Any] | None, act: Callable[[Unit], Awaitable[None]]) -> None:
        self._waiting.drop(database)
        for unit in self._chosen(database):
            await act(unit)

    async def _commit_each(self, units: Iterable[Unit], due: list[OnCommit], *, last: bool = False) -> None:
        """COMMIT one after the other; what is due to be told goes into `due`, also when a later one fails."""
        committed: list[str] = []
        for unit in units:
            try:
                if await unit.send_commit():
                    committed.append(unit.database.name)
            except Exception as error:
                if committed:
                    raise PartialCommitError(committed, unit.database.name) from error
                raise
            # What an orphan would still do with it, nobody would commit.
            unit.use.ended = last
            due += unit.callbacks.take_on_commit()

    async def _close_all(self) -> None:
        for unit in self._owned:
            try:
                await unit.end()
            except Exception as error:  # noqa: BLE001 - how the transaction ended is known by now; close the others
                logger.warning("closing a session failed: %s: %s", type(error).__name__, error)
        self._had_committed = self.has_committed
        # Whoever was started in this scope keeps it in its context, and need not keep the sessions.
        self.units = self._owned = ()
        self._by_database.clear()

    def _chosen(self, database: Database[Any] | None) -> Sequence[Unit]:
        """What to end early: also a session that was lent, whose lender let this code have it."""
        return self.units if database is None else [unit for unit in self.units if unit.database is database]

    def _open_unit(self, database: Database[Any], arguments: Mapping[str, Any]) -> Unit:
        if not self.is_open:
            raise ScopeEndedError
        if self.units or self.parent is not None:
            refuse_nested_writer(database, self)
        session, lease = database.open_session(arguments)
        if self._waiting:
            self._waiting.give(database, sync_part(session))
        unit = Unit(database, session, lease)
        unit.inner.owner = unit
        self._add(unit)
        return unit

    def _add(self, unit: Unit) -> None:
        self._by_database[unit.database] = unit
        self.units = (unit,) if not self.units else _in_order_of_commit(*self.units, unit)
        self._owned = tuple(each for each in self.units if each.owned) if self.is_lent else self.units

    def _wants_more(self, prepared: Iterable[Unit], database: Database[Any] | None) -> bool:
        """Whether a callback of one database has made one for another, which was prepared already."""
        for unit in prepared:
            if unit.callbacks.wants_session:
                return True
        return bool(self._waiting and self._waiting.that_want_a_session(database))

    def _callbacks_of(self, database: Database[Any]) -> Callbacks:
        unit = self._by_database.get(database)
        if unit is None:
            return self._waiting.of(database)
        if unit.inner.owner is None:
            raise UnownedSessionError
        return unit.callbacks

    def _savepoint(self, database: Database[Any]) -> SessionTransaction | None:
        unit = self._by_database.get(database)
        return None if unit is None else unit.inner.get_nested_transaction()


def _in_order_of_commit(*units: Unit) -> tuple[Unit, ...]:
    return tuple(sorted(units, key=lambda each: is_default(each.database)))


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


def refuse_nested_writer(database: Database[Any], enclosing: Scope | None) -> None:
    """Raise :class:`NestedWriterError` if `enclosing`, or a scope around it, holds the write lock of a SQLite file."""
    if not database.is_sqlite:
        return
    while enclosing is not None:
        if any(unit.database.is_same_as(database) and unit.inner.in_transaction() for unit in enclosing.units):
            raise NestedWriterError
        enclosing = enclosing.parent


class scope:  # noqa: N801 - used as a function
    """Open a unit of work: ``async with scope():``.

    Args:
        join: use the scope that is open here, if there is one; whoever opened it ends it.
        session: a session of the caller's for the default database (or `database`), which the scope uses and does not
            end: no COMMIT, no ROLLBACK and no close at the scope's end, and none of the callbacks around them.
        database: whose session `session` is.

    Raises:
        TypeError: `session` is not one of ours, or the arguments exclude each other.
    """

    def __init__(
        self,
        *,
        join: bool = False,
        session: AsyncSession | Session | None = None,
        database: Database[Any] | None = None,
    ) -> None:
        if session is None and database is not None:
            raise TypeError("scope(database=...) says whose session it is: give the session, too")
        if session is not None and join:
            raise TypeError("scope(session=...) is a new scope, which cannot join another")
        self._join = join
        self._session = None if session is None else _ours(session)
        self._database = database
        self._scope: Scope | None = None

    async def __aenter__(self) -> Scope:
        if self._scope is not None:
            raise RuntimeError("this scope is entered already: call scope() again for another")
        enclosing = open_scope()
        if self._join and enclosing is not None:
            return enclosing
        opened = Scope(enclosing)
        if self._session is not None:
            opened.lend(self._database or default_database(), self._session)
        # No token: an async generator may be closed in another context, where a token is refused.
        _current.set(opened)
        self._scope = opened
        return opened

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


def _ours(session: Any) -> AsyncSession | Session:
    if not isinstance(session, AsyncSession | Session):
        kind = "AsyncSession" if isinstance(session, AnyAsyncSession) else "Session"
        raise TypeError(f"scope(session=...) takes a db.{kind}: make it with db.testing, or class_=db.{kind}")
    return session
