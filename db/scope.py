"""The scope: a unit of work, and the only code that commits, rolls back and closes.

1. `scope()` opens a scope. All code below it, child tasks too, gets the same session of each database.
2. Leaving it normally runs the before-commit callbacks, commits, closes, then runs the on-commit callbacks.
3. Leaving it by any exception, a cancellation included, rolls back and closes.
4. The end runs in a task of its own, so a cancellation of the caller waits for its outcome. Only the steps before the
   first COMMIT can still be cancelled: the pending statements and the callbacks that may refuse.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from enum import Enum
from types import TracebackType
from typing import Any, TypeVar

from sqlalchemy.orm import SessionTransaction

from db.aio.cancellation import shielded
from db.database import Database, default_database, order_of_commit
from db.errors import (
    NestedWriterError,
    NoScopeError,
    PartialCommitError,
    ScopeEndedError,
    UnownedSessionError,
    WrongLoopError,
)
from db.session.callbacks import (
    BeforeCommit,
    BeforeCommitBatch,
    Callback,
    Callbacks,
    OnCommit,
    OnCommitBatch,
    call_at_each_begin,
)
from db.session.classes import AsyncSession, Session, sync_session_of
from db.session.lending import LentSession, as_ours, checked
from db.session.owner import ScopedSession, run_on_commit
from db.session.waiting_callbacks import WaitingCallbacks

__all__ = [
    "Block",
    "Scope",
    "ScopedSession",
    "current_scope",
    "enter_block",
    "innermost_place",
    "leave_block",
    "open_scope",
    "refuse_nested_writer",
    "scope",
]

logger = logging.getLogger("db")

S = TypeVar("S", bound=AsyncSession | Session)
T = TypeVar("T")


class _State(Enum):
    OPEN = "open"
    ENDED = "ended"


_OPEN, _ENDED = _State  # read often: CPython 3.11 takes 100 ns to read an enum's member, and 7 to read a global


class Block:
    """A block with a session of its own: that of `independent()` in tests. No scope, but scopes may be inside of it."""

    is_open = False
    is_lent = False
    scoped_sessions: tuple[ScopedSession, ...] = ()

    def __init__(self, parent: "Scope | Block | None") -> None:
        self.parent = parent
        self.is_entered = True


class Scope:
    """The sessions that end together. Opened by :func:`scope`."""

    def __init__(self, parent: "Scope | Block | None") -> None:
        self.parent = parent
        self._state = _OPEN
        self.scoped_sessions: tuple[ScopedSession, ...] = ()
        """In the order of their COMMITs: the order of first use, the default database's last."""
        self._owned: tuple[ScopedSession, ...] = ()
        self._by_database: dict[Database[Any], ScopedSession] = {}
        self._waiting: WaitingCallbacks[Database[Any]] = WaitingCallbacks()
        self._had_committed = False
        self.is_lent = False
        """Whether the scope uses a session of the caller's, whose transaction is then not the scope's own."""
        self._opening: asyncio.Lock | None = None
        self._at_each_begin: Callable[[Callbacks], None] | None = None
        self.loop = asyncio.get_running_loop()
        """The event loop that the scope was opened on."""

    @property
    def is_open(self) -> bool:
        return self._state is _OPEN

    @property
    def is_unused(self) -> bool:
        """Whether no session was opened and no callback registered."""
        return not (self.scoped_sessions or self._waiting)

    @property
    def has_committed(self) -> bool:
        """Whether the scope has committed anything. While the scope is open, that is an early commit."""
        for scoped in self.scoped_sessions:
            if scoped.has_committed:
                return True
        return self._had_committed

    @property
    def has_touched(self) -> bool:
        """Whether any session of the scope has begun a transaction that is still open, or was committed."""
        return self.has_committed or any(scoped.sync_session.in_transaction() for scoped in self.scoped_sessions)

    @property
    def has_begun(self) -> bool:
        """Whether a rollback would lose work or callbacks."""
        return any(scoped.has_begun for scoped in self.scoped_sessions) or any(self._waiting.values())

    async def session(self, database: Database[S]) -> S:
        """The scope's session of `database`, the same at every call.

        Raises:
            ScopeEndedError: the scope has ended.
            WrongLoopError: the scope, or the database's engine, belongs to another event loop.
            NestedWriterError: an enclosing scope holds SQLite's write lock.
        """
        return (await self.scoped_session(database)).session  # type: ignore[return-value]  # keyed by its database

    async def scoped_session(self, database: Database[Any]) -> ScopedSession:
        """The scope's session of `database` with its lease. Raises as `session` does."""
        if asyncio.get_running_loop() is not self.loop:
            raise WrongLoopError("this scope belongs to another event loop: open a scope on this loop")
        scoped = self._by_database.get(database)
        if scoped is not None:
            if scoped.sync_session.is_released:
                await self._reopen(scoped)
            return scoped
        if not database.has_hook:
            return self._open_session(database, {})
        # Other tasks may ask for the same session while the hook runs.
        self._opening = self._opening or asyncio.Lock()
        async with self._opening:
            return self._by_database.get(database) or self._open_session(database, await database.session_arguments())

    async def _reopen(self, scoped: ScopedSession) -> None:
        self._opening = self._opening or asyncio.Lock()
        async with self._opening:
            if scoped.is_released:
                await scoped.reopen()

    def before_commit(self, callback: BeforeCommit, database: Database[Any]) -> None:
        """See :func:`db.before_commit`."""
        self._callbacks_of(database).add_before_commit(callback, self._savepoint(database))

    def before_commit_batch(self, callback: BeforeCommitBatch[T], items: list[T], database: Database[Any]) -> None:
        """Call `callback` once before the COMMIT, with the items of all registrations that were not rolled back."""
        self._callbacks_of(database).add_before_commit_batch(callback, items, self._savepoint(database))

    def on_commit(self, callback: OnCommit, database: Database[Any]) -> None:
        """See :func:`db.on_commit`."""
        self._callbacks_of(database).add_on_commit(callback, self._savepoint(database))

    def on_commit_batch(self, callback: OnCommitBatch[T], items: list[T], database: Database[Any]) -> Callback:
        """Call `callback` once after the COMMIT, with the items of all registrations that were committed.

        Returns:
            The callback, whose `is_committed` tells whether that COMMIT has succeeded.
        """
        return self._callbacks_of(database).add_on_commit_batch(callback, items, self._savepoint(database))

    def call_at_each_commit(self, before: BeforeCommit | None, after: OnCommit | None) -> None:
        """Call `before` and `after` at each COMMIT of the sessions that are opened from now on."""

        def register(callbacks: Callbacks) -> None:
            if before is not None:
                callbacks.add_before_commit(before, None)
            if after is not None:
                callbacks.add_on_commit(after, None)

        self._at_each_begin = register

    def lend(self, database: Database[Any], session: AsyncSession | Session) -> None:
        """Use a session of the caller's, which this scope does not end."""
        self.is_lent = True
        self._add(ScopedSession(database, session, None))

    def prepare(self) -> Awaitable[None]:
        """Send pending changes and run the before-commit callbacks now, so that a last statement can follow them.

        Raises:
            ConcurrentUseError: another coroutine's statement is in flight.
        """
        return self._prepare(lambda: self._owned, None)

    async def commit(self, database: Database[Any] | None = None) -> None:
        """Commit one database or all now, and run the on-commit callbacks. The sessions go on in new transactions.

        Raises:
            ConcurrentUseError: another coroutine's statement is in flight.
            PartialCommitError: one database committed, a later one failed.
        """
        await self._prepare(lambda: self._chosen(database), database)
        self._begin_commit(self._chosen(database), database)
        await shielded(self._commit_early(database))

    async def rollback(self, database: Database[Any] | None = None, *, cancel_running: bool = True) -> None:
        """Roll back one database or all now. The sessions go on in new transactions.

        Args:
            database: the database, or None for all.
            cancel_running: cancel the operations of other coroutines, instead of raising `ConcurrentUseError`.
        """
        await self._end_early(database, lambda scoped: scoped.rollback(cancel_running=cancel_running))

    async def close(self, database: Database[Any] | None = None) -> None:
        """Roll back uncommitted work and release the connections. At its next use a session is like a new one."""
        await self._end_early(database, ScopedSession.close)

    async def end(self, error: BaseException | None) -> None:
        """Commit or roll back, then always close, then run the on-commit callbacks."""
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
        self._begin_commit(self._owned, None)
        if self._owned or self._waiting:
            await shielded(self._commit_and_close())

    async def _end_rolled_back(self) -> None:
        self._state = _ENDED
        if self._owned:
            await shielded(self._close_all())

    def _begin_commit(self, scoped_sessions: Iterable[ScopedSession], database: Database[Any] | None) -> None:
        """Assign the callbacks so far to this COMMIT. Later ones belong to the next."""
        for scoped in scoped_sessions:
            scoped.callbacks.begin_commit()
        if self._waiting:
            self._waiting.begin_commit(database)

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

    async def _prepare(self, chosen: Callable[[], Sequence[ScopedSession]], database: Database[Any] | None) -> None:
        """Take the steps that may still refuse the COMMIT: pending statements, then before-commit callbacks."""
        for scoped in chosen():
            scoped.access.refuse_if_busy()
        while True:
            if self._waiting:
                for each in self._waiting.needing_session(database):
                    await self.scoped_session(each)
            for scoped in chosen():
                await scoped.prepare()
            if not self._has_more_to_prepare(chosen(), database):
                return

    async def _end_early(self, database: Database[Any] | None, act: Callable[[ScopedSession], Awaitable[None]]) -> None:
        self._waiting.drop(database)
        for scoped in self._chosen(database):
            await act(scoped)

    async def _commit_each(
        self, scoped_sessions: Iterable[ScopedSession], due: list[OnCommit], *, last: bool = False
    ) -> None:
        """Commit one after the other, and add each one's on-commit callbacks to `due`, also when a later one fails."""
        committed: list[str] = []
        for scoped in scoped_sessions:
            try:
                if await scoped.send_commit():
                    committed.append(scoped.database.name)
            except Exception as error:
                if committed:
                    raise PartialCommitError(committed, scoped.database.name) from error
                raise
            # Nothing would commit the later work of a child task that outlives the scope.
            scoped.access.ended = last
            due += scoped.callbacks.take_on_commit()

    async def _close_all(self) -> None:
        for scoped in self._owned:
            try:
                await scoped.end()
            except Exception as error:  # noqa: BLE001 - the transaction has ended; close the others
                logger.warning("closing a session failed: %s: %s", type(error).__name__, error)
        self._had_committed = self.has_committed
        # A task that was started in this scope keeps the scope in its context, but need not keep the sessions.
        self.scoped_sessions = self._owned = ()
        self._by_database.clear()

    def _chosen(self, database: Database[Any] | None) -> Sequence[ScopedSession]:
        """The sessions to end early, lent ones included: the lender has allowed that."""
        if database is None:
            return self.scoped_sessions
        return [scoped for scoped in self.scoped_sessions if scoped.database is database]

    def _open_session(self, database: Database[Any], arguments: Mapping[str, Any]) -> ScopedSession:
        if not self.is_open:
            raise ScopeEndedError
        if self.scoped_sessions or self.parent is not None:
            refuse_nested_writer(database, self)
        session, lease = database.open_session(arguments)
        if self._waiting:
            self._waiting.move_to(database, sync_session_of(session))
        scoped = ScopedSession(database, session, lease)
        scoped.sync_session.owner = scoped
        scoped.sync_session.place = self
        if self._at_each_begin is not None:
            call_at_each_begin(scoped.sync_session, self._at_each_begin)
        self._add(scoped)
        return scoped

    def _add(self, scoped: ScopedSession) -> None:
        self._by_database[scoped.database] = scoped
        self.scoped_sessions = (
            (scoped,) if not self.scoped_sessions else _in_order_of_commit(*self.scoped_sessions, scoped)
        )
        self._owned = (
            tuple(each for each in self.scoped_sessions if each.owned) if self.is_lent else self.scoped_sessions
        )

    def _has_more_to_prepare(self, prepared: Iterable[ScopedSession], database: Database[Any] | None) -> bool:
        """Whether a callback of one database has registered one for a database that was prepared already."""
        for scoped in prepared:
            if scoped.callbacks.needs_session:
                return True
        return bool(self._waiting and self._waiting.needing_session(database))

    def _callbacks_of(self, database: Database[Any]) -> Callbacks:
        scoped = self._by_database.get(database)
        if scoped is None:
            return self._waiting.of(database)
        if scoped.sync_session.owner is None:
            raise UnownedSessionError
        return scoped.callbacks

    def _savepoint(self, database: Database[Any]) -> SessionTransaction | None:
        scoped = self._by_database.get(database)
        return None if scoped is None else scoped.sync_session.get_nested_transaction()


def _in_order_of_commit(*scoped_sessions: ScopedSession) -> tuple[ScopedSession, ...]:
    return tuple(sorted(scoped_sessions, key=lambda each: order_of_commit(each.database)))


_current: ContextVar[Scope | Block | None] = ContextVar("db.scope", default=None)


def open_scope() -> Scope | None:
    """The innermost scope that is open here, or None."""
    current = _current.get()
    while current is not None and not current.is_open:
        current = current.parent
    return current  # type: ignore[return-value]  # a block is never open


def innermost_place() -> Scope | Block | None:
    """The innermost open scope or entered block here, or None."""
    current = _current.get()
    while current is not None and not (current.is_open or (isinstance(current, Block) and current.is_entered)):
        current = current.parent
    return current


def enter_block() -> Block:
    """Enter a block, in which code that runs from now on here, and child tasks, will be."""
    block = Block(innermost_place())
    _current.set(block)
    return block


def leave_block(block: Block) -> None:
    """Leave a block, also from another context than the one that has entered it."""
    block.is_entered = False
    if _current.get() is block:
        _current.set(block.parent)


def current_scope() -> Scope:
    """The scope that is open here.

    Raises:
        NoScopeError: no scope is open.
        ScopeEndedError: the scope that this code was started in has ended.
    """
    current = _current.get()
    while isinstance(current, Block):
        current = current.parent
    if current is None:
        raise NoScopeError
    if not current.is_open:
        raise ScopeEndedError
    return current


def refuse_nested_writer(database: Database[Any], enclosing: Scope | Block | None) -> None:
    """Raise :class:`NestedWriterError` if `enclosing`, or a scope around it, holds the write lock of a SQLite file."""
    if not database.is_sqlite:
        return
    while enclosing is not None:
        if any(
            scoped.database.is_same_as(database) and scoped.sync_session.in_transaction()
            for scoped in enclosing.scoped_sessions
        ):
            raise NestedWriterError
        enclosing = enclosing.parent


class scope:  # noqa: N801 - used as a function
    """Open a unit of work: ``async with scope():``.

    ::

        async with scope():
            (await session()).add(Order(id=7))

    Args:
        join: use the scope that is open here, if any. The code that opened it ends it.
        session: a session of the caller's for the default database (or `database`), also one of SQLAlchemy's own. The
            scope uses it and does not end it: no COMMIT, no ROLLBACK and no close at the scope's end, and none of the
            callbacks around them.
        database: the database of `session`.

    Raises:
        TypeError: `session` is not a session, or the arguments exclude each other.
    """

    def __init__(
        self,
        *,
        join: bool = False,
        session: LentSession | None = None,
        database: Database[Any] | None = None,
    ) -> None:
        if session is None and database is not None:
            raise TypeError("scope(database=...) names the database of a session: give the session as well")
        if session is not None and join:
            raise TypeError("scope(session=...) is a new scope, which cannot join another")
        self._join = join
        self._lent = None if session is None else as_ours(checked(session))
        self._database = database
        self._scope: Scope | None = None

    async def __aenter__(self) -> Scope:
        if self._scope is not None:
            raise RuntimeError("this scope is entered already: call scope() again for another one")
        if self._join and (enclosing := open_scope()) is not None:
            return enclosing
        opened = Scope(innermost_place())
        if self._lent is not None:
            opened.lend(self._database or default_database(), self._lent.__enter__())
        # No token, as an async generator may be closed in another context, where a token is refused.
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
            if self._lent is not None:
                self._lent.__exit__(None, None, None)
            if _current.get() is ending:
                _current.set(ending.parent)
