"""Who may use a session, and who is using it right now.

1. One user at a time: a second coroutine or thread gets :class:`~db.errors.ConcurrentUseError`, cold or warm.
2. Nobody after the end: an orphan that outlives the scope gets :class:`~db.errors.ScopeEndedError`.
3. Who ends the transaction first evicts whoever is using the session: a rollback would else queue up behind the
   statement in flight, or fail because of it and leak the connection. A COMMIT in flight is waited for.
"""

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

import sqlalchemy.exc

from db.aio.threads import in_thread
from db.engine.interrupt import disconnect, interrupt
from db.errors import ConcurrentUseError, PoolExhaustedError, ScopeEndedError, WrongThreadError

RELEASE_TIMEOUT = 5.0
"""Seconds that a session's user gets to let go, or a ROLLBACK to be answered; then the connection is thrown away."""


class SessionAccess(ABC):
    """The use of one session."""

    # Defaults of the class, as each job makes one of these.
    ended = False
    """Whether the scope has ended, so that nobody may use the session any more."""
    is_ending_transaction = False
    """Whether the session's owner is ending its transaction right now."""
    _stopped: BaseException | None = None
    _cancelled_by: BaseException | None = None

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

    def stop(self, error: BaseException) -> None:
        """Let the next statement raise `error`: the only way to reach code that runs in a thread."""
        self._stopped = error

    def operation(self) -> "_Operation":
        """One operation of the session's user.

        Raises:
            ConcurrentUseError: another one's operation is in flight.
            ScopeEndedError: the scope has ended, or ended while the operation was in flight.
            PoolExhaustedError: no connection became free in time.
        """
        return _Operation(self)

    def transaction_end(self) -> "_Operation":
        """The owner's COMMIT, ROLLBACK or close; raises as `operation` does, but also works after the scope's end."""
        return _TransactionEnd(self)

    def refuse_if_busy(self) -> None:
        """Raise :class:`ConcurrentUseError` if somebody else's operation is in flight."""
        if self.is_busy and not self._is_held_by_caller:
            raise ConcurrentUseError

    async def cancel_running(self, reason: BaseException, time_limit: float = RELEASE_TIMEOUT) -> bool:
        """End the operation in flight, if any: the server is told to stop it, and its user gets `reason`.

        Returns:
            Whether the session is free; if it is not after about `time_limit` seconds, nothing can be done.
        """
        if not self.is_busy or self._is_held_by_caller:
            return True
        if self.is_ending_transaction:
            # It has a limit of its own.
            return await self._wait_until_free(None)
        self._cancelled_by = reason
        try:
            return await self._cancel_running(time_limit)
        finally:
            self._cancelled_by = None

    async def disconnect(self, time_limit: float = RELEASE_TIMEOUT) -> bool:
        """Cut the connection under whoever is using it, if anybody is, because the server does not answer.

        Returns:
            Whether the session is free.
        """
        return await self._disconnect(time_limit) if self.is_busy else True

    @property
    @abstractmethod
    def is_busy(self) -> bool:
        """Whether somebody's operation is in flight."""

    @property
    @abstractmethod
    def _is_held_by_caller(self) -> bool: ...
    @abstractmethod
    def _acquire(self) -> None: ...
    @abstractmethod
    def _release(self) -> None: ...
    @abstractmethod
    async def _cancel_running(self, time_limit: float) -> bool: ...
    @abstractmethod
    async def _disconnect(self, time_limit: float) -> bool: ...
    @abstractmethod
    async def _wait_until_free(self, time_limit: float | None) -> bool: ...

    def _raise_if_cancelled(self, error: BaseException | None) -> None:
        if self._cancelled_by is not None:
            raise self._cancelled_by from error


class _Operation:
    """One operation of a session's user. Inside another one of the same user's it is a part of that.

    A class of its own, as each statement takes several: a generator would cost three times as much.
    """

    __slots__ = ("_access", "_is_part")

    def __init__(self, access: SessionAccess) -> None:
        self._access = access

    def __enter__(self) -> None:
        access = self._access
        self._is_part = access._is_held_by_caller  # noqa: SLF001 - the other half of this module
        if not self._is_part:
            access.check()
            access._acquire()  # noqa: SLF001 - likewise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_part:
            return
        access = self._access
        try:
            if access._cancelled_by is not None:  # noqa: SLF001 - likewise
                access._raise_if_cancelled(error)  # noqa: SLF001 - likewise
            if isinstance(error, sqlalchemy.exc.TimeoutError):
                raise PoolExhaustedError(str(error)) from error
        finally:
            access._release()  # noqa: SLF001 - likewise


class _TransactionEnd(_Operation):
    """The owner's COMMIT, ROLLBACK or close."""

    __slots__ = ()

    def __enter__(self) -> None:
        access = self._access
        self._is_part = access._is_held_by_caller  # noqa: SLF001 - the other half of this module
        if not self._is_part:
            access._acquire()  # noqa: SLF001 - likewise
        access.is_ending_transaction = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._access.is_ending_transaction = False
        super().__exit__(kind, error, traceback)


class LoopAccess(SessionAccess):
    """The use of an `AsyncSession`, by the tasks of one event loop."""

    _user: asyncio.Task[Any] | None = None
    _cancelling_before = 0
    _free: asyncio.Event | None = None

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def check(self) -> None:
        if self.ended or self._stopped is not None:
            super().check()
        if self._thread != threading.get_ident():
            raise WrongThreadError

    @property
    def is_busy(self) -> bool:
        return self._user is not None

    @property
    def _is_held_by_caller(self) -> bool:
        return self._user is not None and self._thread == threading.get_ident() and self._user is asyncio.current_task()

    def _acquire(self) -> None:
        if self._user is not None:
            raise ConcurrentUseError
        self._user = asyncio.current_task()
        self._cancelling_before = 0 if self._user is None else self._user.cancelling()

    def _release(self) -> None:
        self._user = None
        if self._free is not None:
            self._free.set()
            self._free = None

    async def _cancel_running(self, time_limit: float) -> bool:
        assert self._user is not None  # noqa: S101 - it is busy
        self._user.cancel()
        return await self._wait_until_free(time_limit)

    async def _disconnect(self, time_limit: float) -> bool:
        # A cancelled statement ends at once, whatever the server does.
        return await self._cancel_running(time_limit)

    async def _wait_until_free(self, time_limit: float | None) -> bool:
        try:
            async with asyncio.timeout(time_limit):
                while self.is_busy:
                    self._free = self._free or asyncio.Event()
                    await self._free.wait()
        except TimeoutError:
            return False
        return True

    def _raise_if_cancelled(self, error: BaseException | None) -> None:
        if self._cancelled_by is None or self._user is None:
            return
        still_cancelled = self._user.uncancel() > self._cancelling_before
        if isinstance(error, asyncio.CancelledError):
            if still_cancelled:  # by somebody else as well, who must not be kept waiting
                return
            error = None
        raise self._cancelled_by from error


class ThreadAccess(SessionAccess):
    """The use of a `Session`, by any threads."""

    def __init__(self) -> None:
        self.driver_connections: list[Any] = []
        """Those of the transaction that is open."""
        self._lock = threading.Lock()
        self._user: int | None = None
        self._on_free: list[Callable[[], Any]] = []

    @property
    def is_busy(self) -> bool:
        return self._lock.locked()

    @property
    def _is_held_by_caller(self) -> bool:
        return self._user == threading.get_ident()

    def _acquire(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise ConcurrentUseError
        self._user = threading.get_ident()

    def _release(self) -> None:
        self._user = None
        self._lock.release()
        for set_free in [*self._on_free]:
            with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                set_free()

    async def _cancel_running(self, time_limit: float) -> bool:
        await self._for_each_connection(lambda connection: interrupt(connection, time_limit / 2))
        return await self._wait_until_free(time_limit / 2) or await self._disconnect(time_limit)

    async def _disconnect(self, time_limit: float) -> bool:
        await self._for_each_connection(disconnect)
        return await self._wait_until_free(time_limit)

    async def _for_each_connection(self, action: Callable[[Any], None]) -> None:
        for connection in [*self.driver_connections]:
            await in_thread(action, connection)

    async def _wait_until_free(self, time_limit: float | None) -> bool:
        loop, free = asyncio.get_running_loop(), asyncio.Event()

        def set_free() -> None:
            loop.call_soon_threadsafe(free.set)

        self._on_free.append(set_free)
        try:
            async with asyncio.timeout(time_limit):
                while self._lock.locked():
                    await free.wait()
                    free.clear()
        except TimeoutError:
            return False
        finally:
            self._on_free.remove(set_free)
        return True
