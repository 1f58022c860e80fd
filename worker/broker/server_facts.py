"""``ServerFacts``: what a Redis server says about itself."""

from typing import Any

from worker.broker.connections import Connections


class ServerFacts:
    """Reads the facts of one Redis."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def read(self) -> dict[str, Any]:
        """The server's version, its memory and its policy, by the names of INFO. Of a cluster those of one node."""
        facts: dict[str, Any] = await self._connections.client.info()
        return facts if "redis_version" in facts else next(iter(facts.values()))

    async def clock(self) -> int:
        """The server's time, in milliseconds since the epoch."""
        seconds, microseconds = await self._connections.client.time()
        return int(seconds) * 1000 + int(microseconds) // 1000
