"""Restart a loop that fails, after a longer pause each time. A loop that keeps failing ends the engine."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from db.errors import DbError
from db.transient import transient
from worker.aio.backoff import Backoff
from worker.broker.errors import RedisError
from worker.errors import LedgerBusyError

logger = logging.getLogger("worker")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0  # seconds
_RECOVERED = 30.0  # seconds without a failure, after which earlier ones are forgotten
_WARN_AGAIN = 30.0  # seconds between two warnings while a server is away
_MAX_FAILURES = 10


class EngineError(Exception):
    """The engine cannot go on. The process should end and be started again."""

    exit_code = 1
    """Of the process."""


async def supervise(
    name: str,
    run: Callable[[], Awaitable[None]],
    *,
    trouble: Callable[[str], None],
    is_ending: Callable[[], bool],
) -> None:
    """Run `run` until it returns.

    Args:
        trouble: called with a description of each failure. The worker is unhealthy for a while after it.
        is_ending: whether the engine wants the loop to end. If not, a cancellation comes from the loop's own code or
            from a task's, and counts as a failure.

    Raises:
        EngineError: the loop raised it, or failed too often. Failures while a server is away do not count: the loop
            waits for the server without a limit.
    """
    backoff, failures, last_failure, last_warning = (
        Backoff(_FIRST_PAUSE, _LONGEST_PAUSE),
        0,
        time.monotonic(),
        -_WARN_AGAIN,
    )
    while True:
        try:
            await run()
        except EngineError:
            raise
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and is_ending():
                raise
            trouble(f"{name}: {type(error).__name__}: {error}")
            now = time.monotonic()
            if now - last_failure > _RECOVERED:
                backoff.reset()
                failures = 0
            last_failure = now
            if (server := _server_at_fault(error)) is not None:
                if now - last_warning >= _WARN_AGAIN:
                    logger.warning("%s waits for %s: %s: %s", name, server, type(error).__name__, error)
                    last_warning = now
            else:
                failures += 1
                if failures >= _MAX_FAILURES:
                    why = f"{name} failed {failures} times, last with {type(error).__name__}: {error}"
                    raise EngineError(why) from error
                logger.exception("%s failed; it is started again", name)
        else:
            return
        await asyncio.sleep(backoff.next())


def _server_at_fault(error: BaseException) -> str | None:
    """The server that caused `error`, if one did."""
    if isinstance(error, DbError | LedgerBusyError) or transient(error) is not None:
        return "the database"
    return "Redis" if isinstance(error, RedisError | OSError) else None
