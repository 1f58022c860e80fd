"""``StuckSlots``: end a worker whose slots are all held by jobs that cannot be stopped."""

import asyncio
from collections.abc import Callable

from worker.engine.executions import Executions
from worker.engine.health import UNHEALTHY_WITHIN
from worker.engine.heartbeat import STUCK
from worker.engine.supervision import EngineError

_INTERVAL = 0.5  # seconds between two checks


class SlotsHeldError(EngineError):
    """No slot of this worker will ever be free again."""

    exit_code = STUCK


class StuckSlots:
    """Watches the slots.

    Args:
        hurry: called before the failure, so that the drain does not wait for running jobs.
    """

    def __init__(self, executions: Executions, hurry: Callable[[], None]) -> None:
        self._executions = executions
        self._hurry = hurry

    async def run(self) -> None:
        """Fail once all slots have been held for some time by jobs past their limits.

        Raises:
            SlotsHeldError: all slots are held for good.
        """
        held_for = 0.0
        while held_for < UNHEALTHY_WITHIN:  # long enough for a health check to report it
            await asyncio.sleep(_INTERVAL)
            held_for = held_for + _INTERVAL if self._executions.hold_all_slots_overdue else 0.0
        self._hurry()
        slots = self._executions.slots
        held = (
            "the only slot is held by a job past its limit"
            if slots == 1
            else f"all {slots:,} slots are held by jobs past their limits"
        )
        raise SlotsHeldError(f"{held} that cannot be stopped")
