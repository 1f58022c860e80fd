"""``Connections``: what this process has open to one Redis, for each event loop, and scripts run on it.

1. Each event loop that uses it has connections of its own: threads that run loops may share it.
2. What a worker runs all the time, claiming and finishing, has a connection each.
3. A server that answers READONLY is not the primary any more. Its connections are dropped, and the next command asks
   which one is.
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

_ON_LINES = ("claim", "finish")  # the scripts that have a connection each, as a worker runs them all the time


class Connections:
    """The connections to one Redis. Each is opened by its first use.

    Args:
        url: as of :mod:`worker.broker.redis_url`.

    Raises:
        ValueError: the URL cannot be used.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        RedisAddress.parse(url)  # where it is wrong, that is told here
        self._by_loop: dict[asyncio.AbstractEventLoop, LoopConnections] = {}

    @property
    def client(self) -> AsyncClient:
        """The client of the event loop that runs now."""
        return self._here.client

    @property
    def notices(self) -> Subscriber:
        """The subscription of the event loop that runs now."""
        return self._here.notices

    async def run(self, script: str, queue: str, arguments: Sequence[Any]) -> Any:
        """Run a script on the keys of `queue`; its reply.

        Raises:
            WorkerError: this Redis cannot serve the queue under its name.
            redis.exceptions.RedisError, OSError: as redis-py does.
        """
        self.check_name(queue)
        here = self._here
        line = here.line(script) if script in _ON_LINES else None
        try:
            return await Script.named(script).run(line or here.client, queue, arguments)
        except ReadOnlyError:
            await drop_connections(here.client)
            await here.close_lines()
            raise

    def check_name(self, queue: str) -> None:
        """Raise :class:`~worker.errors.WorkerError` for a queue that this Redis cannot serve under its name."""
        if self.url.startswith(CLUSTER) and not Keys.of(queue).in_one_slot:
            raise WorkerError(f"a Redis Cluster serves hash-tagged queues only: call it {{{queue}}} instead of {queue}")

    async def open(self) -> None:
        """Open what a worker needs all the time, before others have taken all that the server allows."""
        here = self._here
        for script in _ON_LINES:
            if (line := here.line(script)) is not None:
                await line.open()
        await here.client.ping()

    async def close(self) -> None:
        """Close the connections of the event loop that runs now, and those of `enqueue_sync`. The next use opens them.

        Those of other loops are closed by their own `close`, or when their loop ends.
        """
        self._drop_those_of_closed_loops()
        here = self._by_loop.pop(asyncio.get_running_loop(), None)
        of_threads = self._by_loop.pop(loop, None) if (loop := loop_thread.own_loop()) is not None else None
        if here is not None:
            await here.close()
        if of_threads is not None:
            await asyncio.to_thread(loop_thread.run, of_threads.close())

    @property
    def _here(self) -> LoopConnections:
        """The connections of the event loop that runs now."""
        loop = asyncio.get_running_loop()
        here = self._by_loop.get(loop)
        if here is None:
            self._drop_those_of_closed_loops()
            here = self._by_loop[loop] = LoopConnections(self.url)
        return here

    def _drop_those_of_closed_loops(self) -> None:
        for loop in [loop for loop in list(self._by_loop) if loop.is_closed()]:
            if (left := self._by_loop.pop(loop, None)) is not None:  # unless another thread has just done so
                left.abandon()
