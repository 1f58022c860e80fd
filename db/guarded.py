"""``AsyncSession`` and ``Session``: SQLAlchemy's own, which know who owns their transaction and who is using them.

1. One operation at a time: a second coroutine gets :class:`~db.errors.ConcurrentUseError`, cold or warm.
2. Nothing after the end: an orphan that outlives the scope gets :class:`~db.errors.ScopeEndedError`.
3. ``commit()``, ``rollback()`` and ``close()`` go through the owner (a scope), which runs the callbacks around them.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Protocol, TypeVar

import sqlalchemy.exc
import sqlalchemy.ext.asyncio as sa_async
import sqlalchemy.orm as sa_orm
from sqlalchemy import Connection, Engine, event

from db.callbacks import Callbacks, follow
from db.cancellation import to_the_end
from db.errors import ConcurrentUseError, PoolExhaustedError, ScopeEndedError, WrongThreadError

T = TypeVar("T")


class Owner(Protocol):
    """Who ends the transactions of a session."""

    async def commit(self) -> None: ...
    async def rollback(self) -> None: ...
    async def close(self) -> None: ...
    def commit_in_thread(self, commit: Callable[[], None]) -> None: ...


class Use:
    """Who may use a session, and who is using it right now."""

    __slots__ = ("_evicted", "_idle", "_operation", "_stopped", "_thread", "ended")

    def __init__(self, *, on_loop: bool) -> None:
        self.ended = False
        self._thread = threading.get_ident() if on_loop else None
        self._operation: asyncio.Task[Any] | None = None
        self._stopped: BaseException | None = None
        self._evicted = False
        self._idle: asyncio.Event | None = None

    def check(self) -> None:
        """Raise unless the session may be used here and now.

        Raises:
            ScopeEndedError: its scope has ended.
            WrongThreadError: it belongs to an event loop, and this is not the loop's thread.
        """
        if self.ended:
            raise ScopeEndedError
        if self._stopped is not None:
            raise self._stopped
        if self._thread is not None and self._thread != threading.get_ident():
            raise WrongThreadError

    def stop(self, error: BaseException) -> None:
        """Let the next statement raise `error`: the only way to reach code that runs in a thread."""
        self._stopped = error

    async def alone(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Run one operation of the session, unless another coroutine's is in flight.

        Raises:
            ConcurrentUseError: another coroutine's operation is in flight.
            ScopeEndedError: the scope has ended, or ended while the operation was in flight.
        """
        task = asyncio.current_task()
        if self._operation is task:
            return await operation()
        self.check()
        if self._operation is not None:
            raise ConcurrentUseError
        self._operation = task
        try:
            return await operation()
        except asyncio.CancelledError:
            if not self._evicted:
                raise
            if task is not None:
                task.uncancel()
            raise ScopeEndedError from None
        except sqlalchemy.exc.TimeoutError as error:
            raise PoolExhaustedError(str(error)) from error
        finally:
            self._operation = None
            if self._idle is not None:
                self._idle.set()

    def refuse_concurrent_end(self) -> None:
        """Raise :class:`ConcurrentUseError` if another coroutine's operation is in flight."""
        if self._operation is not None and self._operation is not asyncio.current_task():
            raise ConcurrentUseError

    async def evict(self) -> None:
        """End the operation in flight, if any: the server is told to stop it, and its coroutine gets `ScopeEndedError`.

        Without this a rollback would queue up behind the statement, or fail because of it and leak the connection.
        """
        operation = self._operation
        if operation is None or operation is asyncio.current_task():
            return
        self._evicted = True
        self._idle = asyncio.Event()
        operation.cancel()
        await self._idle.wait()
        self._evicted = False


class Guarded(sa_orm.Session):
    """What the sync session inside an AsyncSession and a Session of its own have in common."""

    use: Use
    callbacks: Callbacks

    def get_bind(self, *args: Any, **kwargs: Any) -> Engine | Connection:
        # Every statement and every flush asks for its bind first.
        self.use.check()
        return super().get_bind(*args, **kwargs)


@event.listens_for(Guarded, "before_attach", propagate=True)
def _refuse_late_objects(session: Guarded, _instance: object) -> None:
    session.use.check()


follow(Guarded)


class _LoopSession(Guarded):
    """The sync session inside an :class:`AsyncSession`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.use = Use(on_loop=True)
        self.callbacks = Callbacks()
        super().__init__(*args, **kwargs)


class Session(Guarded):
    """SQLAlchemy's `Session` over a synchronous driver, owned by a scope; use it through `asyncio.to_thread`."""

    owner: Owner | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.use = Use(on_loop=False)
        self.callbacks = Callbacks()
        super().__init__(*args, **kwargs)

    def commit(self) -> None:
        """Commit now, in this thread, with the callbacks made so far."""
        if self.owner is None:
            super().commit()
        else:
            self.owner.commit_in_thread(super().commit)

    def rollback(self) -> None:
        super().rollback()
        self.callbacks.drop()

    def close(self) -> None:
        super().close()
        self.callbacks.drop()


class AsyncSession(sa_async.AsyncSession):
    """SQLAlchemy's `AsyncSession`, owned by a scope."""

    sync_session_class = _LoopSession
    owner: Owner | None = None

    @property
    def use(self) -> Use:
        return self._guarded.use

    @property
    def callbacks(self) -> Callbacks:
        return self._guarded.callbacks

    @property
    def _guarded(self) -> _LoopSession:
        session = self.sync_session
        assert isinstance(session, _LoopSession)  # noqa: S101 - `sync_session_class` made it
        return session

    async def commit(self) -> None:
        """Commit now. In a scope: with the callbacks made so far; the same session then goes on."""
        self.use.check()
        await (self.owner.commit() if self.owner else to_the_end(super().commit()))

    async def rollback(self) -> None:
        """Roll back now; the same session then goes on."""
        self.use.check()
        await (self.owner.rollback() if self.owner else to_the_end(super().rollback()))

    async def close(self) -> None:
        """Roll back what was not committed and give the connection back; the next use takes a new one."""
        await (self.owner.close() if self.owner and not self.use.ended else to_the_end(super().close()))

    def begin(self) -> sa_async.AsyncSessionTransaction:
        return _Transaction(self)

    def begin_nested(self) -> sa_async.AsyncSessionTransaction:
        return _Transaction(self, nested=True)


class _Transaction(sa_async.AsyncSessionTransaction):
    """``session.begin()`` and ``begin_nested()``: the root one commits through the session's owner."""

    async def start(self, is_ctxmanager: bool = False) -> "_Transaction":
        session = _ours(self.session)
        await session.use.alone(lambda: super(_Transaction, self).start(is_ctxmanager=is_ctxmanager))
        return self

    async def commit(self) -> None:
        if self.nested:
            await super().commit()
        else:
            await self.session.commit()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None and not self.nested and self.is_active:
            await self.session.commit()
        await to_the_end(_exit(super().__aexit__(kind, error, traceback)))


async def _exit(leaving: Awaitable[None]) -> None:
    await leaving


def _ours(session: sa_async.AsyncSession) -> AsyncSession:
    assert isinstance(session, AsyncSession)  # noqa: S101 - only AsyncSession makes a _Transaction
    return session


def _exclusive(name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def operation(self: AsyncSession, *args: Any, **kwargs: Any) -> Any:
        method = getattr(super(AsyncSession, self), name)
        return await self.use.alone(lambda: method(*args, **kwargs))

    operation.__name__ = name
    operation.__qualname__ = f"AsyncSession.{name}"
    operation.__doc__ = getattr(sa_async.AsyncSession, name).__doc__
    return operation


# Everything of AsyncSession that talks to the database. The types stay SQLAlchemy's.
for _name in (
    "connection", "delete", "delete_all", "execute", "flush", "get", "get_one", "merge", "merge_all", "refresh",
    "run_sync", "scalar", "scalars", "stream", "stream_scalars",
):  # fmt: skip
    setattr(AsyncSession, _name, _exclusive(_name))


def sync_part(session: AsyncSession | Session) -> Guarded:
    """The synchronous session that does the work."""
    return session._guarded if isinstance(session, AsyncSession) else session  # noqa: SLF001 - same module


async def send_commit(session: AsyncSession | Session) -> None:
    """Flush and COMMIT, past the session's owner. For the owner alone."""
    await _send(session, sa_async.AsyncSession.commit, sa_orm.Session.commit)


async def send_rollback(session: AsyncSession | Session) -> None:
    """ROLLBACK, past the session's owner. For the owner alone."""
    await _send(session, sa_async.AsyncSession.rollback, sa_orm.Session.rollback)


async def send_close(session: AsyncSession | Session) -> None:
    """Give the connection back, past the session's owner. For the owner alone."""
    await _send(session, sa_async.AsyncSession.close, sa_orm.Session.close)


async def discard(session: AsyncSession | Session) -> None:
    """Throw the connection away, in whatever state it is. For the owner alone."""
    await _send(session, sa_async.AsyncSession.invalidate, sa_orm.Session.invalidate)


async def _send(
    session: AsyncSession | Session,
    on_loop: Callable[[sa_async.AsyncSession], Awaitable[None]],
    in_thread: Callable[[sa_orm.Session], None],
) -> None:
    if isinstance(session, AsyncSession):
        await on_loop(session)
    elif session.in_transaction():
        await asyncio.to_thread(in_thread, session)
    else:
        in_thread(session)
