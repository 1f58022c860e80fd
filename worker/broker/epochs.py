"""``Epochs``: keys that tell one memory of Redis from another, as they go when Redis loses its memory."""

import secrets
from collections.abc import Sequence

from worker.broker.connections import Connections
from worker.broker.keys import Keys

_BEGUN = b"?"  # before an epoch that nobody has completed


class Epochs:
    """The epochs of the queues of one Redis."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def current(self, queues: Sequence[str]) -> dict[str, bytes | None]:
        """The epoch of each queue; None where Redis has lost it, and nobody has said since that all is there again."""
        async with self._connections.client.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.get(Keys.of(queue).epoch)
            values: list[bytes | None] = await pipe.execute()
        found = zip(queues, values, strict=True)
        return {queue: None if epoch is None or epoch.startswith(_BEGUN) else epoch for queue, epoch in found}

    async def begin(self, queue: str) -> bytes:
        """Begin a new epoch where there is none; which one it is now."""
        key, redis = Keys.of(queue).epoch, self._connections.client
        epoch = secrets.token_hex(8).encode()
        while not await redis.set(key, _BEGUN + epoch, nx=True):
            other: bytes | None = await redis.get(key)
            if other is not None:
                return other.removeprefix(_BEGUN)
        return epoch

    async def complete(self, queue: str, epoch: bytes) -> bool:
        """Say that all is in the queue that is to be; False where Redis has lost it again since `epoch` began."""
        return bool(await self._connections.run("epoch", queue, [Keys.of(queue).epoch, epoch, _BEGUN]))
