"""``until_idle``: wait until a worker has nothing left to do (``--burst``)."""

import asyncio
from collections.abc import Sequence

from worker.broker.broker import Broker
from worker.engine.executions import Executions
from worker.engine.relay import Relay

_INTERVAL = 0.1  # seconds between two checks


async def until_idle(executions: Executions, broker: Broker, names: Sequence[str], relay: Relay | None) -> None:
    """Wait until no job runs, all queues are empty and no pending row is unpublished."""
    # Looked at again and again: other workers empty the queues too, and send no notice.
    while executions or executions.tasks or not await _nothing_is_left(broker, names, relay):  # noqa: ASYNC110
        await asyncio.sleep(_INTERVAL)


async def _nothing_is_left(broker: Broker, names: Sequence[str], relay: Relay | None) -> bool:
    try:
        if any((await broker.depths(names)).values()):
            return False
        return relay is None or not await relay.recover()
    except Exception:  # noqa: BLE001 - a server does not answer; the loops log that
        return False
