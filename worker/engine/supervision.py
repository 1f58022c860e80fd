"""Keeping a loop alive: one that fails is started again, later each time; one that keeps failing ends the engine."""

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
_SAY_AGAIN = 30.0  # seconds between two warnings of the same trouble
_TOO_OFTEN = 10


class EngineError(Exception):
    """The engine cannot go on; the process should end, and be started anew."""

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
        is_ending: whether the engine wants the loop to end. Without that, a cancellation is one that the loop's own
            code or a task's has made up, and a failure like any other.

    Raises:
        EngineError: it says that the engine cannot go on; or it failed too often, and not for a server's sake, which is
            waited for without end.
    """
    backoff, failures, since, said = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE), 0, time.monotonic(), -_SAY_AGAIN
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
            if now - since > _RECOVERED:
                backoff.reset()
                failures = 0
            since = now
            if (server := _in_trouble(error)) is not None:
                if now - said >= _SAY_AGAIN:
                    logger.warning("%s waits for %s: %s: %s", name, server, type(error).__name__, error)
                    said = now
            else:
                failures += 1
                if failures >= _TOO_OFTEN:
                    why = f"{name} failed {failures} times, last with {type(error).__name__}: {error}"
                    raise EngineError(why) from error
                logger.exception("%s failed; it is started again", name)
        else:
            return
        await asyncio.sleep(backoff.next())


def _in_trouble(error: BaseException) -> str | None:
    """The server that caused `error`, if one did."""
    if isinstance(error, DbError | LedgerBusyError) or transient(error) is not None:
        return "the database"
    return "Redis" if isinstance(error, RedisError | OSError) else None
