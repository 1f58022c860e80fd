"""``StuckSlots``: whether jobs that nothing can end hold all slots of this worker, for good."""

import asyncio
from collections.abc import Callable

from worker.engine.executions import Executions
from worker.engine.health import UNWELL_WITHIN
from worker.engine.heartbeat import STUCK
from worker.engine.supervision import EngineError

_INTERVAL = 0.5  # seconds between two looks


class SlotsHeldError(EngineError):
    """No slot of this worker will ever be free again."""

    exit_code = STUCK


class StuckSlots:
    """Watches the slots.

    Args:
        slots: how many there are.
        hurry: called before the failure: running jobs need not be waited for.
    """

    def __init__(self, executions: Executions, slots: int, hurry: Callable[[], None]) -> None:
        self._executions = executions
        self._slots = slots
        self._hurry = hurry

    async def run(self) -> None:
        """Fail once all slots have been held for some time by jobs past their limits.

        Raises:
            SlotsHeldError: it is so.
        """
        held_for = 0.0
        while held_for < UNWELL_WITHIN:  # a health check hears of it before the process ends
            await asyncio.sleep(_INTERVAL)
            held_for = held_for + _INTERVAL if self._executions.hold_all_slots_overdue else 0.0
        self._hurry()
        raise SlotsHeldError(f"all {self._slots} slots are held by jobs past their limits, which do not end")
