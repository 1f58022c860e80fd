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
from db.engine.interrupt import break_off, interrupt
from db.errors import ConcurrentUseError, PoolExhaustedError, ScopeEndedError, WrongThreadError

PATIENCE = 5.0
"""Seconds that a session's user gets to let go, or a ROLLBACK to be answered; then the connection is thrown away."""


class Use(ABC):
    """The use of one session."""

    # Defaults of the class, as each job makes one of these.
    ended = False
    """Whether the scope has ended, so that nobody may use the session any more."""
    is_ending = False
    """Whether the session's owner is ending its transaction right now."""
    _stopped: BaseException | None = None
    _eviction: BaseException | None = None

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

    def operation(self) -> "_Turn":
        """One operation of the session's user.

        Raises:
            ConcurrentUseError: another one's operation is in flight.
            ScopeEndedError: the scope has ended, or ended while the operation was in flight.
            PoolExhaustedError: no connection became free in time.
        """
        return _Turn(self)

    def ending(self) -> "_Turn":
        """The owner's COMMIT, ROLLBACK or close; raises as `operation` does, but also works after the scope's end."""
        return _Ending(self)

    def refuse_if_busy(self) -> None:
        """Raise :class:`ConcurrentUseError` if somebody else's operation is in flight."""
        if self.is_busy and not self._is_mine:
            raise ConcurrentUseError

    async def evict(self, reason: BaseException, patience: float = PATIENCE) -> bool:
        """End the operation in flight, if any: the server is told to stop it, and its user gets `reason`.

        Returns:
            Whether the session is free; if it is not after about `patience` seconds, nothing can be done.
        """
        if not self.is_busy or self._is_mine:
            return True
        if self.is_ending:
            # It has a limit of its own.
            return await self._wait_until_free(None)
        self._eviction = reason
        try:
            return await self._evict(patience)
        finally:
            self._eviction = None

    async def break_off(self, patience: float = PATIENCE) -> bool:
        """Cut the connection under whoever is using it, if anybody is, because the server does not answer.

        Returns:
            Whether the session is free.
        """
        return await self._break_off(patience) if self.is_busy else True

    @property
    @abstractmethod
    def is_busy(self) -> bool:
        """Whether somebody's operation is in flight."""

    @property
    @abstractmethod
    def _is_mine(self) -> bool: ...
    @abstractmethod
    def _take(self) -> None: ...
    @abstractmethod
    def _leave(self) -> None: ...
    @abstractmethod
    async def _evict(self, patience: float) -> bool: ...
    @abstractmethod
    async def _break_off(self, patience: float) -> bool: ...
    @abstractmethod
    async def _wait_until_free(self, patience: float | None) -> bool: ...

    def _raise_eviction(self, error: BaseException | None) -> None:
        if self._eviction is not None:
            raise self._eviction from error


class _Turn:
    """One operation of a session's user. Inside another one of the same user's it is a part of that.

    A class of its own, as each statement takes several: a generator would cost three times as much.
    """

    __slots__ = ("_is_part", "_use")

    def __init__(self, use: Use) -> None:
        self._use = use

    def __enter__(self) -> None:
        use = self._use
        self._is_part = use._is_mine  # noqa: SLF001 - the other half of this module
        if not self._is_part:
            use.check()
            use._take()  # noqa: SLF001 - likewise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_part:
            return
        use = self._use
        try:
            if use._eviction is not None:  # noqa: SLF001 - likewise
                use._raise_eviction(error)  # noqa: SLF001 - likewise
            if isinstance(error, sqlalchemy.exc.TimeoutError):
                raise PoolExhaustedError(str(error)) from error
        finally:
            use._leave()  # noqa: SLF001 - likewise


class _Ending(_Turn):
    """The owner's COMMIT, ROLLBACK or close."""

    __slots__ = ()

    def __enter__(self) -> None:
        use = self._use
        self._is_part = use._is_mine  # noqa: SLF001 - the other half of this module
        if not self._is_part:
            use._take()  # noqa: SLF001 - likewise
        use.is_ending = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._use.is_ending = False
        super().__exit__(kind, error, traceback)


class LoopUse(Use):
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
    def _is_mine(self) -> bool:
        return self._user is not None and self._thread == threading.get_ident() and self._user is asyncio.current_task()

    def _take(self) -> None:
        if self._user is not None:
            raise ConcurrentUseError
        self._user = asyncio.current_task()
        self._cancelling_before = 0 if self._user is None else self._user.cancelling()

    def _leave(self) -> None:
        self._user = None
        if self._free is not None:
            self._free.set()
            self._free = None

    async def _evict(self, patience: float) -> bool:
        assert self._user is not None  # noqa: S101 - it is busy
        self._user.cancel()
        return await self._wait_until_free(patience)

    async def _break_off(self, patience: float) -> bool:
        # A cancelled statement ends at once, whatever the server does.
        return await self._evict(patience)

    async def _wait_until_free(self, patience: float | None) -> bool:
        try:
            async with asyncio.timeout(patience):
                while self.is_busy:
                    self._free = self._free or asyncio.Event()
                    await self._free.wait()
        except TimeoutError:
            return False
        return True

    def _raise_eviction(self, error: BaseException | None) -> None:
        if self._eviction is None or self._user is None:
            return
        still_cancelled = self._user.uncancel() > self._cancelling_before
        if isinstance(error, asyncio.CancelledError):
            if still_cancelled:  # by somebody else as well, who must not be kept waiting
                return
            error = None
        raise self._eviction from error


class ThreadUse(Use):
    """The use of a `Session`, by any threads."""

    def __init__(self) -> None:
        self.driver_connections: list[Any] = []
        """Those of the transaction that is open."""
        self._lock = threading.Lock()
        self._user: int | None = None
        self._tell_free: list[Callable[[], Any]] = []

    @property
    def is_busy(self) -> bool:
        return self._lock.locked()

    @property
    def _is_mine(self) -> bool:
        return self._user == threading.get_ident()

    def _take(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise ConcurrentUseError
        self._user = threading.get_ident()

    def _leave(self) -> None:
        self._user = None
        self._lock.release()
        for tell in [*self._tell_free]:
            with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                tell()

    async def _evict(self, patience: float) -> bool:
        await self._reach(lambda connection: interrupt(connection, patience / 2))
        return await self._wait_until_free(patience / 2) or await self._break_off(patience)

    async def _break_off(self, patience: float) -> bool:
        await self._reach(break_off)
        return await self._wait_until_free(patience)

    async def _reach(self, act: Callable[[Any], None]) -> None:
        for connection in [*self.driver_connections]:
            await in_thread(act, connection)

    async def _wait_until_free(self, patience: float | None) -> bool:
        loop, free = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            loop.call_soon_threadsafe(free.set)

        self._tell_free.append(tell)
        try:
            async with asyncio.timeout(patience):
                while self._lock.locked():
                    await free.wait()
                    free.clear()
        except TimeoutError:
            return False
        finally:
            self._tell_free.remove(tell)
        return True
