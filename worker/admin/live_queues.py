"""``LiveQueues``: the queues that workers serve, also those that no setting and no task of this process names."""

import contextlib
import time

from worker.broker.broker import Broker
from worker.broker.errors import RedisError
from worker.broker.served_queues import ServedQueues

_FRESH = 5.0  # seconds for which the names are not read again


class LiveQueues:
    """The names of the queues that workers serve, or have served within a day, as they were read last.

    Args:
        broker: the broker of their Redis.
    """

    def __init__(self, broker: Broker) -> None:
        self._served = ServedQueues(broker.connections)
        self._last_read = -_FRESH
        self.names: tuple[str, ...] = ()

    async def refresh(self) -> None:
        """Read the names, unless that was done a moment ago. If Redis does not answer, the last ones stay."""
        if time.monotonic() - self._last_read < _FRESH:
            return
        self._last_read = time.monotonic()
        with contextlib.suppress(RedisError, OSError):
            self.names = tuple(await self._served.names())
