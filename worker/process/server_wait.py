"""Waiting for the database and Redis when a worker or a command starts.

1. A server that is away is tried again until the time is up. The log gives each new reason once.
2. A server that refuses (a wrong password, an unknown database) would refuse again, so it is tried once.
3. Each error is one line, and names the environment variable with the server's address.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from db import DatabaseURLError
from db.transient import Transient, transient
from worker.broker.connection import TIMEOUT, connect_sync
from worker.broker.errors import AuthenticationError, ClusterDownError, RedisError, ResponseError
from worker.process.errors import StartupError

logger = logging.getLogger("worker")

_PAUSE = 0.2  # seconds between two tries
_SHORTEST_TRY = 0.1  # seconds

T = TypeVar("T")


async def await_server(variable: str, ask: Callable[[], Awaitable[T]], seconds: float) -> T:
    """Wait up to `seconds` for the answer of the server that `variable` names, and return the answer.

    Raises:
        StartupError: the server does not answer, or refuses; or `ask` raises it.
    """
    wait = ServerWait(variable, seconds)
    while True:
        try:
            async with asyncio.timeout(wait.left):
                return await ask()
        except StartupError:
            raise
        except Exception as error:  # noqa: BLE001 - `pause_after` distinguishes them
            pause = wait.pause_after(error)
        await asyncio.sleep(pause)


def await_redis(url: str, seconds: float) -> None:
    """Wait up to `seconds` for Redis, before an event loop runs.

    Raises:
        StartupError: Redis does not answer, or refuses.
    """
    wait = ServerWait("REDIS_URL", seconds)
    while True:
        try:
            with connect_sync(url, longest_wait=min(wait.left, TIMEOUT)) as client:
                client.ping()
                return
        except (RedisError, OSError) as error:
            pause = wait.pause_after(error)
        time.sleep(pause)


class ServerWait:
    """A wait of up to `seconds` for the server that `variable` names."""

    def __init__(self, variable: str, seconds: float) -> None:
        self._variable = variable
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._logged_reason = ""

    @property
    def left(self) -> float:
        """Seconds that the next try may take."""
        return max(self._deadline - time.monotonic(), _SHORTEST_TRY)

    def pause_after(self, error: Exception) -> float:
        """Seconds until the next try, after a try that failed with `error`.

        Raises:
            StartupError: the server refuses, or the time is up.
        """
        reason = reason_of(error)
        if isinstance(error, DatabaseURLError):
            raise StartupError(f"{self._variable}: {reason}") from None
        if not _is_away(error):
            raise StartupError(f"{self._variable}: the server refuses: {reason}") from None
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise StartupError(
                f"{self._variable}: no answer within {self._seconds:g} s ({reason}); is the server up?"
            ) from None
        if reason != self._logged_reason:
            self._logged_reason = reason
            logger.info("waiting for %s: %s", self._variable, reason)
        return min(_PAUSE, left)


def reason_of(error: BaseException) -> str:
    """The first line of the driver's message."""
    lines = str(getattr(error, "orig", None) or error).splitlines()
    return lines[0] if lines else type(error).__name__


def _is_away(error: Exception) -> bool:
    """Whether the server may answer later. A cluster that is down may come up; a refusal is final."""
    if isinstance(error, RedisError):
        refused = isinstance(error, AuthenticationError | ResponseError)
        return not refused or isinstance(error, ClusterDownError)
    return isinstance(error, OSError) or transient(error) is Transient.LOST
