"""``ServedQueues``: the names of the queues that workers have served of late.

1. A process that looks at the fleet finds by them also queues that no setting and no task of it names.
2. They are the members of one sorted set, each with the time of a worker's clock at which it was served last. A day
   matters here, so clocks may be minutes apart.
"""

import time
from collections.abc import Sequence

from worker.broker.connections import Connections

KEY = "arq:served-queues"
_KEPT = 24 * 3600 * 1000  # milliseconds: a queue whose workers are all gone may have jobs that somebody looks for


class ServedQueues:
    """The queues of one Redis that workers serve, or have served within a day."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def record(self, queues: Sequence[str]) -> None:
        """Record that a worker serves these queues now."""
        now = time.time_ns() // 1_000_000
        async with self._connections.client.pipeline(transaction=False) as pipe:
            pipe.zadd(KEY, dict.fromkeys(queues, now))
            pipe.zremrangebyscore(KEY, "-inf", now - _KEPT)
            pipe.pexpire(KEY, _KEPT)
            await pipe.execute()

    async def names(self) -> list[str]:
        """The names of the queues, in their alphabetical order."""
        names: list[bytes] = await self._connections.client.zrange(KEY, 0, -1)
        return sorted(name.decode(errors="replace") for name in names)
