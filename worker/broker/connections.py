"""``Connections``: the connections of this process to one Redis, and the scripts that are run on them.

1. Each event loop has connections of its own, so threads that run event loops may share one object.
2. `claim` and `finish` have a dedicated connection each, as a worker runs them all the time.
3. A server that answers READONLY is not the primary any more. Its connections are dropped, and the next command looks
   for the new primary.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from redis.exceptions import ReadOnlyError

from worker.aio import loop_thread
from worker.broker.connection import AsyncClient, drop_connections
from worker.broker.keys import Keys
from worker.broker.loop_connections import LoopConnections
from worker.broker.pubsub import Subscriber
from worker.broker.redis_url import CLUSTER, RedisAddress
from worker.broker.scripts import Script
from worker.errors import WorkerError

_DEDICATED = ("claim", "finish")  # scripts with a dedicated connection each


class Connections:
    """The connections to one Redis. Each is opened by its first use.

    Args:
        url: a URL that :mod:`worker.broker.redis_url` reads.

    Raises:
        ValueError: the URL cannot be used.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        RedisAddress.parse(url)  # raises if the URL is wrong
        self.is_cluster = url.startswith(CLUSTER)
        self._by_loop: dict[asyncio.AbstractEventLoop, LoopConnections] = {}

    @property
    def client(self) -> AsyncClient:
        """The client of the running event loop."""
        return self._here.client

    @property
    def subscriber(self) -> Subscriber:
        """The subscriber of the running event loop."""
        return self._here.subscriber

    async def run(self, script: str, queue: str, arguments: Sequence[Any]) -> Any:
        """Run a script on the keys of `queue`, and return its reply. Raises as `run_on`."""
        return await self.run_on(script, (queue,), arguments)

    async def run_on(self, script: str, queues: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Run a script on the keys of several queues, which one call can serve (`together`), and return its reply.

        Raises:
            WorkerError: this Redis cannot serve a queue under its name.
            redis.exceptions.RedisError, OSError: as redis-py raises them.
        """
        if self.is_cluster:
            for queue in queues:
                self.check_name(queue)
        here = self._here
        dedicated = here.dedicated(script) if script in _DEDICATED else None
        try:
            return await Script.named(script).run(dedicated or here.client, queues, arguments)
        except ReadOnlyError:
            await drop_connections(here.client)
            await here.close_dedicated()
            raise

    async def get_all(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values of these keys, in one round trip. None for a missing key."""
        if not keys:
            return []
        if not self.is_cluster:
            values: list[bytes | None] = await self.client.mget(keys)
            return values
        async with self.client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.get(key)
            found: list[bytes | None] = await pipe.execute()
            return found

    def together(self, queues: Sequence[str]) -> list[Sequence[str]]:
        """The queues in groups that one call of a script can serve: all, but in a cluster each queue by itself."""
        return [(queue,) for queue in queues] if self.is_cluster else [queues]

    def check_name(self, queue: str) -> None:
        """Raise :class:`~worker.errors.WorkerError` for a queue that this Redis cannot serve under its name."""
        if self.is_cluster and not Keys.of(queue).in_one_slot:
            raise WorkerError(f"a Redis Cluster serves hash-tagged queues only: call it {{{queue}}} instead of {queue}")

    async def open(self) -> None:
        """Open a worker's connections at its start, while the server still takes clients."""
        here = self._here
        for script in _DEDICATED:
            if (connection := here.dedicated(script)) is not None:
                await connection.open()
        await here.client.ping()

    async def close(self) -> None:
        """Close the connections of the running event loop, and those of `enqueue_sync`. The next use opens them again.

        Another loop's connections are closed by `close` on that loop, or when the loop ends.
        """
        self._drop_closed_loops()
        here = self._by_loop.pop(asyncio.get_running_loop(), None)
        own_loop = loop_thread.own_loop()
        of_own_loop = None if own_loop is None else self._by_loop.pop(own_loop, None)
        if here is not None:
            await here.close()
        if of_own_loop is not None:
            await asyncio.to_thread(loop_thread.run, of_own_loop.close())

    @property
    def _here(self) -> LoopConnections:
        """The connections of the running event loop."""
        loop = asyncio.get_running_loop()
        here = self._by_loop.get(loop)
        if here is None:
            self._drop_closed_loops()
            here = self._by_loop[loop] = LoopConnections(self.url)
        return here

    def _drop_closed_loops(self) -> None:
        for loop in [loop for loop in list(self._by_loop) if loop.is_closed()]:
            if (connections := self._by_loop.pop(loop, None)) is not None:  # None if another thread has just done so
                connections.abandon()
