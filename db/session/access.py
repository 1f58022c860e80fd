"""Access to one session: one user at a time, and none after the end.

1. One user at a time. A second coroutine or thread gets :class:`~db.errors.ConcurrentUseError`, cold or warm.
2. No user after the end. A child task that outlives the scope gets :class:`~db.errors.ScopeEndedError`.
3. The end of a transaction first cancels the operation in flight. A rollback would otherwise queue behind the
   statement, or fail because of it and leak the connection. A COMMIT in flight is waited for.
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
"""Seconds for a cancelled operation to end, or a ROLLBACK to be answered. After that the connection is discarded."""


class SessionAccess(ABC):
    """Access to one session, exclusive for the length of an operation."""

    # Class attributes, as each job makes one of these objects.
    ended = False
    """Whether the scope has ended, after which every use is refused."""
    is_ending_transaction = False
    """Whether a COMMIT, ROLLBACK or close of the session's owner is in flight."""
    _stopped: BaseException | None = None
    _cancelled_by: BaseException | None = None

    def check(self) -> None:
        """Raise unless the caller may use the session.

        Raises:
            ScopeEndedError: the session's scope has ended.
            WrongThreadError: the session belongs to an event loop, and this is not the loop's thread.
        """
        if self.ended:
            raise ScopeEndedError
        if self._stopped is not None:
            raise self._stopped

    def stop(self, error: BaseException) -> None:
        """Make the next statement raise `error`. Code in a thread cannot be reached in any other way."""
        self._stopped = error

    def operation(self) -> "_Operation":
        """A context manager around one operation of the session's user.

        Raises:
            ConcurrentUseError: another user's operation is in flight.
            ScopeEndedError: the scope has ended, or ended while the operation was in flight.
            PoolExhaustedError: no connection became free in time.
        """
        return _Operation(self)

    def transaction_end(self) -> "_Operation":
        """A context manager around the owner's COMMIT, ROLLBACK or close.

        It raises as `operation` does, but also works after the scope's end.
        """
        return _TransactionEnd(self)

    def refuse_if_busy(self) -> None:
        """Raise :class:`ConcurrentUseError` if another user's operation is in flight."""
        if self.is_busy and not self._is_held_by_caller:
            raise ConcurrentUseError

    async def cancel_running(self, reason: BaseException, time_limit: float = RELEASE_TIMEOUT) -> bool:
        """Cancel the operation in flight, if any: tell the server to stop it, and raise `reason` to its user.

        Returns:
            Whether the session is free. If it is not free after about `time_limit` seconds, nothing more can be done.
        """
        if not self.is_busy or self._is_held_by_caller:
            return True
        if self.is_ending_transaction:
            # The end of a transaction has a time limit of its own.
            return await self._wait_until_free(None)
        self._cancelled_by = reason
        try:
            return await self._cancel_running(time_limit)
        finally:
            self._cancelled_by = None

    async def disconnect(self, time_limit: float = RELEASE_TIMEOUT) -> bool:
        """Close the connection under the operation in flight, if any, because the server does not answer.

        Returns:
            Whether the session is free.
        """
        return await self._disconnect(time_limit) if self.is_busy else True

    @property
    @abstractmethod
    def is_busy(self) -> bool:
        """Whether an operation is in flight."""

    @property
    def is_held_by_caller(self) -> bool:
        """Whether the operation in flight, if any, is one of the caller's."""
        return self.is_busy and self._is_held_by_caller

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
    """One operation of a session's user. An operation inside another one of the same user is a part of it.

    A class and not a generator, which would cost three times as much: each statement enters several operations.
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
    """Access to an `AsyncSession` for the tasks of one event loop."""

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
        assert self._user is not None  # noqa: S101 - called only while an operation is in flight
        self._user.cancel()
        return await self._wait_until_free(time_limit)

    async def _disconnect(self, time_limit: float) -> bool:
        # A cancelled statement of an async driver ends at once, with or without an answer.
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
            if still_cancelled:  # a second cancellation, from elsewhere, which must take effect
                return
            error = None
        raise self._cancelled_by from error


class ThreadAccess(SessionAccess):
    """Access to a `Session` for any threads."""

    def __init__(self) -> None:
        self.driver_connections: list[Any] = []
        """The connections of the open transaction."""
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
            with suppress(RuntimeError):  # the loop of the waiting task is closed
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
