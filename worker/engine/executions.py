"""``Executions``: all jobs that this worker holds.

The event loop runs them. The heartbeat's thread keeps their leases.
"""

import asyncio
from collections.abc import Iterator

from worker.engine.execution import Execution, Phase


class Executions:
    """All executions. Only the event loop adds and removes. The heartbeat's thread reads copies.

    Args:
        slots: how many jobs may run at once.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._held: dict[Execution, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Execution]:
        return iter(list(self._held))

    def add(self, execution: Execution) -> None:
        """Hold it, until `remove`. From now on the heartbeat's thread may cancel it."""
        if execution.asyncio_task is not None:
            self._tasks.add(execution.asyncio_task)
        self._held[execution] = None

    def remove(self, execution: Execution) -> None:
        """Let go of it: Redis knows its outcome, or another worker holds it."""
        if execution in self._held:
            del self._held[execution]
            execution.release()

    def task_ended(self, execution: Execution) -> None:
        """Take note that its asyncio task ends now. Its outcome may still be on its way."""
        if execution.asyncio_task is not None:
            self._tasks.discard(execution.asyncio_task)

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """The asyncio tasks that have not ended. One that was cancelled before it began could not say so itself."""
        return {task for task in self._tasks if not task.done()}

    @property
    def running(self) -> int:
        return sum(execution.phase is Phase.RUNNING for execution in self)

    @property
    def overdue(self) -> list[Execution]:
        """The executions that hold a slot although their attempt has taken longer than it may."""
        return [execution for execution in self if execution.is_overdue]

    @property
    def hold_all_slots_overdue(self) -> bool:
        """Whether jobs that are overdue hold every slot of this worker."""
        return len(self.overdue) >= self._slots

    @property
    def longest_lease(self) -> float:
        """Seconds for which the lease of one that runs may be kept; 0 where none runs.

        One whose payload is not read does not run yet: what keeps it from beginning is not its body.
        """
        running = (each for each in self if each.phase is Phase.RUNNING and each.is_read)
        return max((execution.limits.lease for execution in running), default=0.0)

    def to_renew(self, queue: str) -> list[Execution]:
        """The executions whose leases are to be renewed in `queue`."""
        return [execution for execution in self if execution.queue == queue and not execution.is_overdue]
