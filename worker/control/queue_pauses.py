"""``QueuePauses``: the pauses of queues. The rows in the ledger's database are the truth, and Redis has copies of them.

1. The claim script reads the copy with the queue, so a pause holds for all workers from their next claim on.
2. Whoever changes a row, or finds a copy that differs from its row, writes the copies and then reads the rows again. So
   the last one who writes a copy has written what the row says, however many do so at the same time.
3. Workers compare rows and copies at each lap of the relay, and when Redis has lost its data.
4. A process without a ledger writes a pause to Redis alone. Such a pause says so, and is left as it is.
"""

from collections.abc import Sequence

from worker.broker.broker import Broker
from worker.broker.pauses import PauseCopies, QueuePause
from worker.ledger import Ledger
from worker.ledger.pauses import PauseKind, PauseRow, Pauses


class QueuePauses:
    """The pauses of the queues of one Redis.

    Args:
        ledger: the ledger whose database has the rows (default: there are none).
    """

    def __init__(self, broker: Broker, ledger: Ledger | None) -> None:
        self._copies = PauseCopies(broker.connections)
        self._rows = None if ledger is None else Pauses(ledger.name)

    async def copies(self, queues: Sequence[str]) -> dict[str, QueuePause]:
        """The pauses in Redis, by queue."""
        copies = await self._copies.read(queues)
        return {queue: QueuePause.decode(copy) for queue, copy in copies.items() if copy is not None}

    async def set_copy(self, queue: str, pause: QueuePause | None) -> None:
        """Write a pause to Redis alone, where there are no rows, or end such a pause."""
        await self._copies.write(queue, pause)

    async def restore(self, queues: Sequence[str]) -> list[str]:
        """Write the copies that differ from their rows. Return the queues that are paused."""
        if self._rows is None:
            return [*await self.copies(queues)]
        rows = await self._rows.read(PauseKind.QUEUE, queues)
        while True:
            copies = await self._copies.read(queues)
            pauses = {queue: _right_pause(rows.get(queue), copies[queue]) for queue in queues}
            wrong = [queue for queue, pause in pauses.items() if copies[queue] != (pause and pause.encode())]
            for queue in wrong:
                await self._copies.write(queue, pauses[queue])
            before, rows = rows, await self._rows.read(PauseKind.QUEUE, queues) if wrong else rows
            if rows == before:
                return [queue for queue, pause in pauses.items() if pause is not None]


def _right_pause(row: PauseRow | None, copy: bytes | None) -> QueuePause | None:
    """The pause that Redis should have: the row's, or one that was made without a ledger."""
    if row is not None:
        return QueuePause(row.since, row.actor, row.until, row.due_before)
    pause = None if copy is None else QueuePause.decode(copy)
    return None if pause is None or pause.is_durable else pause
