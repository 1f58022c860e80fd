"""Waiting for the database and for Redis, when a worker or a command starts.

1. A server that is away is asked again until the time is up. The log says why it is away, once for each reason.
2. A server that refuses (a wrong password, an unknown database) would refuse again: it is asked once.
3. Either error is one line, and names the variable that says where the server is.
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

_LOOK_AGAIN = 0.2  # seconds between two tries
_SHORTEST_TRY = 0.1  # seconds

T = TypeVar("T")


async def await_server(variable: str, ask: Callable[[], Awaitable[T]], seconds: float) -> T:
    """Wait up to `seconds` for an answer of the server that `variable` names, and return it.

    Raises:
        StartupError: it does not answer, or refuses to; or `ask` raised it, having seen what is wrong.
    """
    wait = ServerWait(variable, seconds)
    while True:
        try:
            async with asyncio.timeout(wait.left):
                return await ask()
        except StartupError:
            raise
        except Exception as error:  # noqa: BLE001 - `after` tells them apart
            pause = wait.after(error)
        await asyncio.sleep(pause)


def await_redis(url: str, seconds: float) -> None:
    """Wait up to `seconds` for Redis, where no event loop runs yet.

    Raises:
        StartupError: it does not answer, or refuses to.
    """
    wait = ServerWait("REDIS_URL", seconds)
    while True:
        try:
            with connect_sync(url, longest_wait=min(wait.left, TIMEOUT)) as client:
                client.ping()
                return
        except (RedisError, OSError) as error:
            pause = wait.after(error)
        time.sleep(pause)


class ServerWait:
    """A wait of up to `seconds` for the server that `variable` names."""

    def __init__(self, variable: str, seconds: float) -> None:
        self._variable = variable
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._told = ""

    @property
    def left(self) -> float:
        """Seconds that the next try may take."""
        return max(self._deadline - time.monotonic(), _SHORTEST_TRY)

    def after(self, error: Exception) -> float:
        """Seconds until the next try, after one that ended with `error`.

        Raises:
            StartupError: there is to be none.
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
        if reason != self._told:
            self._told = reason
            logger.info("waiting for %s: %s", self._variable, reason)
        return min(_LOOK_AGAIN, left)


def reason_of(error: BaseException) -> str:
    """What the driver says, in a line."""
    lines = str(getattr(error, "orig", None) or error).splitlines()
    return lines[0] if lines else type(error).__name__


def _is_away(error: Exception) -> bool:
    """Whether the server may answer another time, instead of refusing again. A cluster that is down may come up."""
    if isinstance(error, RedisError):
        refused = isinstance(error, AuthenticationError | ResponseError)
        return not refused or isinstance(error, ClusterDownError)
    return isinstance(error, OSError) or transient(error) is Transient.LOST
