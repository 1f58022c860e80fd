"""``Epochs``: a random key for each queue, by which a worker notices that Redis has lost its data.

An epoch begins when the key is missing. It is complete when all pending jobs of the ledger are in the queue again.
"""

import secrets
from collections.abc import Sequence

from worker.broker.connections import Connections
from worker.broker.keys import Keys

_BEGUN = b"?"  # prefix of an epoch that is not complete yet


class Epochs:
    """The epochs of the queues of one Redis."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def current(self, queues: Sequence[str]) -> dict[str, bytes | None]:
        """The epoch of each queue. None if Redis has lost the key, or the epoch is not complete yet."""
        return (await self.current_and_paused(queues))[0]

    async def current_and_paused(self, queues: Sequence[str]) -> tuple[dict[str, bytes | None], list[str]]:
        """The epoch of each queue as `current`, and the names of those that are paused."""
        keys = [Keys.of(queue) for queue in queues]
        values = await self._connections.get_all([each.epoch for each in keys] + [each.paused for each in keys])
        found = zip(queues, values, strict=False)
        epochs = {queue: None if epoch is None or epoch.startswith(_BEGUN) else epoch for queue, epoch in found}
        return epochs, [queue for queue, copy in zip(queues, values[len(keys) :], strict=True) if copy is not None]

    async def begin(self, queue: str) -> bytes:
        """Begin a new epoch if there is none, and return the current one."""
        key, redis = Keys.of(queue).epoch, self._connections.client
        epoch = secrets.token_hex(8).encode()
        while not await redis.set(key, _BEGUN + epoch, nx=True):
            other: bytes | None = await redis.get(key)
            if other is not None:
                return other.removeprefix(_BEGUN)
        return epoch

    async def complete(self, queue: str, epoch: bytes) -> bool:
        """Mark `epoch` as complete: all jobs are in the queue again. False if Redis has lost its data again since."""
        return bool(await self._connections.run("epoch", queue, [Keys.of(queue).epoch, epoch, _BEGUN]))
