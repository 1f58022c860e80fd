"""``Executions``: all jobs that this worker holds.

The event loop runs them. The heartbeat's thread keeps their leases.
"""

import asyncio
from collections.abc import Iterator

from worker.engine.execution import Execution, Phase


class Executions:
    """All executions. Only the event loop adds and removes them. The heartbeat's thread reads copies.

    Args:
        slots: the number of jobs that may run at once.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._held: dict[Execution, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Execution]:
        return iter(list(self._held))

    def add(self, execution: Execution) -> None:
        """Hold an execution until `remove`. From now on the heartbeat's thread may cancel it."""
        if execution.asyncio_task is not None:
            self._tasks.add(execution.asyncio_task)
        self._held[execution] = None

    def remove(self, execution: Execution) -> None:
        """Stop holding an execution: Redis has its outcome, or another worker holds its job."""
        if execution in self._held:
            del self._held[execution]
            execution.release()
        if execution.recorded is not None and not execution.recorded.done():
            execution.recorded.set_result(None)

    def task_ended(self, execution: Execution) -> None:
        """Record that the asyncio task of an execution ends now. Its outcome may not be written yet."""
        if execution.asyncio_task is not None:
            self._tasks.discard(execution.asyncio_task)

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """The asyncio tasks that have not ended. A task cancelled before it begins does not call `task_ended`."""
        return {task for task in self._tasks if not task.done()}

    @property
    def running(self) -> int:
        return sum(execution.phase is Phase.RUNNING for execution in self)

    @property
    def overdue(self) -> list[Execution]:
        """The executions that hold a slot although their attempt has taken longer than it may."""
        return [execution for execution in self if execution.holds_slot and execution.is_overdue]

    @property
    def hold_all_slots_overdue(self) -> bool:
        """Whether overdue jobs hold every slot of this worker."""
        return len(self.overdue) >= self.slots

    @property
    def longest_lease(self) -> float:
        """The longest time in seconds for which the lease of a running job may be kept; 0 if no job runs.

        A job whose payload has not been read does not run yet: its body cannot be the reason for a delay.
        """
        running = (each for each in self if each.phase is Phase.RUNNING and each.is_read)
        return max((execution.limits.lease for execution in running), default=0.0)

    def to_renew(self, queue: str) -> list[Execution]:
        """Return the executions whose leases are to be renewed in `queue`."""
        return [execution for execution in self if execution.queue == queue and not execution.is_overdue]
