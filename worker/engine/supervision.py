"""Keeping a loop alive: one that fails is started again, later each time; one that keeps failing ends the engine."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from redis.exceptions import ReadOnlyError, RedisError

logger = logging.getLogger("worker")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0  # seconds
_RECOVERED = 30.0  # seconds without a failure, after which earlier ones are forgotten
_TOO_OFTEN = 10


class EngineError(Exception):
    """A loop of the engine keeps failing; the process should end and be started anew."""


async def supervise(
    name: str,
    run: Callable[[], Awaitable[None]],
    *,
    trouble: Callable[[str | None], None],
    reconnect: Callable[[], Awaitable[None]],
) -> None:
    """Run `run` until it returns.

    Args:
        trouble: told of each failure that Redis explains, so that the worker counts as unwell meanwhile.
        reconnect: drops the connections to a server that is not the primary any more.

    Raises:
        EngineError: it failed too often, and not for Redis' sake, which is waited for without end.
    """
    pause, failures, since = _FIRST_PAUSE, 0, time.monotonic()
    while True:
        try:
            await run()
        except (RedisError, OSError) as error:
            trouble(f"{type(error).__name__}: {error}")
            if isinstance(error, ReadOnlyError):
                await reconnect()
            if pause == _FIRST_PAUSE:
                logger.warning("%s: Redis: %s: %s; trying again", name, type(error).__name__, error)
        except Exception as error:
            failures += 1
            if failures >= _TOO_OFTEN:
                raise EngineError(
                    f"{name} failed {failures} times, last with {type(error).__name__}: {error}"
                ) from error
            logger.exception("%s failed; it is started again", name)
        else:
            return
        if time.monotonic() - since > _RECOVERED:
            pause, failures = _FIRST_PAUSE, 0
        since = time.monotonic()
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)
