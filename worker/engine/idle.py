"""``Idle``: whether a worker has nothing left to do (``--burst``)."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from worker.broker.broker import Broker
from worker.engine.executions import Executions
from worker.engine.relay import Relay
from worker.engine.scheduler import Scheduler
from worker.engine.slots import Slots

_INTERVAL = 0.1  # seconds between two checks


@dataclass(frozen=True, slots=True)
class Idle:
    """The state in which no job runs, all queues are empty and no pending row is unpublished, or no job may start."""

    executions: Executions
    broker: Broker
    queue_names: Sequence[str]
    relay: Relay | None
    scheduler: Scheduler
    slots: Slots

    async def reached(self) -> None:
        """Wait for this state."""
        # Looked at again and again: other workers empty the queues too, and send no notice.
        while not self.scheduler.has_begun or self._something_runs or not await self._nothing_is_left():  # noqa: ASYNC110
            await asyncio.sleep(_INTERVAL)

    @property
    def _something_runs(self) -> bool:
        return bool(self.executions or self.executions.tasks)  # a hook may still run for a job that is not held

    async def _nothing_is_left(self) -> bool:
        if self.slots.are_used_up:
            return True
        try:
            if await self._has_queued_jobs():
                return False
            if self.relay is None:
                return True
            # Asked again after the sweep: the relay's own loop may have published a row since, which the sweep then
            # finds in Redis.
            return not (await self.relay.recover() or self._something_runs or await self._has_queued_jobs())
        except Exception:  # noqa: BLE001 - a server does not answer; the loops log that
            return False

    async def _has_queued_jobs(self) -> bool:
        """Whether a job waits or runs in any of the queues."""
        return any((await self.broker.depths(self.queue_names)).values())
