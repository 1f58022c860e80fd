"""Waiting for Redis, before it is used for the first time."""

import logging
import time

import redis

from worker.connection import TIMEOUT, connect_sync
from worker.process.runtime import StartupError

logger = logging.getLogger("worker")

_LOOK_AGAIN = 0.2  # seconds between two tries
_SHORTEST_TRY = 0.1  # seconds


def await_redis(url: str, seconds: float) -> None:
    """Wait up to `seconds` for Redis, before arq or the engine connects.

    Raises:
        StartupError: it does not answer, or refuses to.
    """
    wait = RedisWait(seconds)
    while True:
        try:
            with connect_sync(url, longest_wait=min(wait.left, TIMEOUT)) as client:
                client.ping()
                return
        except (redis.RedisError, OSError) as error:
            pause = wait.after(error)
        time.sleep(pause)


class RedisWait:
    """A wait of up to `seconds`, unless Redis says that it would be in vain."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._told = ""

    @property
    def left(self) -> float:
        """Seconds that the next try may take."""
        return max(self._deadline - time.monotonic(), _SHORTEST_TRY)

    def after(self, error: redis.RedisError | OSError) -> float:
        """Seconds until the next try, after one that ended so.

        Raises:
            StartupError: there is to be none.
        """
        if _is_refusal(error):
            raise StartupError(f"REDIS_URL: the server refuses: {error}") from None
        if time.monotonic() > self._deadline:
            raise StartupError(
                f"REDIS_URL: no answer within {self._seconds:g} s ({error}); is the server up?"
            ) from None
        if str(error) != self._told:
            self._told = str(error)
            logger.info("waiting for REDIS_URL: %s", error)
        return _LOOK_AGAIN


def _is_refusal(error: redis.RedisError | OSError) -> bool:
    """Whether the next try will be answered likewise. A cluster that is down may come up."""
    refused = isinstance(error, redis.AuthenticationError | redis.ResponseError)
    return refused and not isinstance(error, redis.exceptions.ClusterDownError)
