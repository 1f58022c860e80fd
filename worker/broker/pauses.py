"""``PauseCopies``: the copies of pauses in Redis, which the claim script reads with the queue.

A copy is ``<score> <JSON>``. Of a paused queue workers claim only the jobs up to this score: none if the score is
``-inf``, and those that were due when the queue was drained otherwise. The JSON says who has paused the queue, and
when. The copy expires at the end of the pause.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

from pydantic_core import from_json, to_json

from worker.broker.connections import Connections
from worker.broker.keys import Keys

_NO_JOBS = "-inf"


class QueuePause(NamedTuple):
    """The pause of a queue. Times are milliseconds since the epoch."""

    since: int
    actor: str
    until: int | None = None
    """None: until a person resumes the queue."""
    due_before: int | None = None
    """The jobs that were due before this time, by the clock of Redis, still start. None: no job starts."""
    is_durable: bool = True
    """Whether the pause is a copy of a row in the ledger's database."""

    def encode(self) -> bytes:
        about = {"since": self.since, "actor": self.actor, "until": self.until, "durable": self.is_durable}
        return f"{_NO_JOBS if self.due_before is None else self.due_before} ".encode() + to_json(about)

    @classmethod
    def decode(cls, copy: bytes) -> Self:
        """The pause of a copy. Of a copy that other software has written, as much as can be read."""
        score, _, about = copy.partition(b" ")
        try:
            fields = from_json(about)
            since, actor, until = int(fields["since"]), str(fields["actor"]), fields["until"]
            is_durable = fields["durable"] is not False
        except (ValueError, TypeError, KeyError):
            since, actor, until, is_durable = 0, "", None, True
        return cls(since, actor, until, int(score) if score.isdigit() else None, is_durable)


class PauseCopies:
    """The pauses in one Redis."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def read(self, queues: Sequence[str]) -> dict[str, bytes | None]:
        """The copy of each queue's pause, or None."""
        copies = await self._connections.get_all([Keys.of(queue).paused for queue in queues])
        return dict(zip(queues, copies, strict=True))

    async def write(self, queue: str, pause: QueuePause | None) -> None:
        """Write the copy of a pause. None deletes it, and wakes the workers."""
        copy, until = (b"", None) if pause is None else (pause.encode(), pause.until)
        arguments = [Keys.of(queue).wake, copy, "" if until is None else until]
        await self._connections.run("pause", queue, arguments)
