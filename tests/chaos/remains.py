"""What a run has left behind that it should not have: transactions, connections, keys, processes."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

from tests.chaos.chronicle import Chronicle
from tests.chaos.faults import PATIENCE
from tests.chaos.post import Post
from tests.chaos.stage import QUEUES, Stage
from worker.keys import Keys

_SOON = 10.0  # seconds: a tombstone lives for five, and a backend needs a moment to see that its client has gone

_NAMES = [Keys.of(queue) for queue in QUEUES]
_KEPT = (
    *(names.result("") for names in _NAMES),
    *(names.slots for names in _NAMES),
    *(names.epoch for names in _NAMES),
    *(names.tasks for names in _NAMES),
)
"""What keys that may stay begin with: results for as long as they are kept, and what outlives all jobs by design."""


async def open_transactions(stage: Stage) -> list[str]:
    """Backends that stay idle in a transaction, with their last statements."""

    async def look() -> list[str]:
        async with stage.database() as database:
            found = await database.fetch(
                "SELECT pid, query FROM pg_stat_activity"
                " WHERE datname = current_database() AND state LIKE 'idle in transaction%'"
            )
        return [f"backend {pid} is idle in a transaction: {query}" for pid, query in found]

    return await _left_at_last(look)


async def connections(stage: Stage) -> list[str]:
    """Backends of workers that have ended."""

    async def look() -> list[str]:
        async with stage.database() as database:
            backends = await database.backends()
        return [f"{backends} backends serve nobody"] if backends else []

    return await _left_at_last(look)


async def keys(stage: Stage) -> list[str]:
    """Redis keys that nothing will remove."""

    async def look() -> list[str]:
        async with stage.redis() as redis:
            found = sorted(key.decode() for key in await redis.keys("*"))
        return [f"Redis has {key}" for key in found if not key.startswith(_KEPT)]

    return await _left_at_last(look)


async def end(posts: Iterable[Post], chronicle: Chronicle) -> None:
    """Tell all processes to stop, at the same time; those that do not end in order are accused."""

    async def stop(post: Post) -> None:
        wrong = await post.told_to_stop(PATIENCE)
        if wrong is not None:
            chronicle.accuse(f"{post.name} {wrong}")

    async with asyncio.TaskGroup() as stopping:
        for post in posts:
            stopping.create_task(stop(post))


def processes(posts: Iterable[Post]) -> list[str]:
    """What the processes of the posts have started, and left running."""
    return [f"{post.name} left a process behind: {line}" for post in posts for line in post.descendants_left()]


async def _left_at_last(look: Callable[[], Awaitable[list[str]]]) -> list[str]:
    deadline = time.monotonic() + _SOON
    while (found := await look()) and time.monotonic() < deadline:  # noqa: ASYNC110 - the servers tell nobody
        await asyncio.sleep(0.2)
    return found
