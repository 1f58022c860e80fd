"""``BulkRuns``: how far bulk actions of people have come, so that every process can show and stop them."""

from worker.broker.connections import Connections

_KEPT = 24 * 60 * 60 * 1000  # milliseconds
_STOP = "stop"


class BulkRuns:
    """The bulk actions of one Redis. Each is known for a day."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def save(self, run_id: str, progress: bytes) -> bool:
        """Write how far an action has come. Returns False if a person has asked it to stop."""
        async with self._connections.client.pipeline(transaction=False) as pipe:
            pipe.set(_key(run_id), progress, px=_KEPT)
            pipe.exists(f"{_key(run_id)}:{_STOP}")
            _, is_stopped = await pipe.execute()
        return not is_stopped

    async def read(self, run_id: str) -> bytes | None:
        """What was written last. None if there is no such action."""
        progress: bytes | None = await self._connections.client.get(_key(run_id))
        return progress

    async def stop(self, run_id: str) -> None:
        """Ask an action to stop after its present batch."""
        await self._connections.client.set(f"{_key(run_id)}:{_STOP}", b"1", px=_KEPT)


def _key(run_id: str) -> str:
    return f"arq:bulk:{run_id}"
