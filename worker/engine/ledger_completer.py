"""``LedgerCompleter``: outcomes -> ledger, in batches, before Redis hears of them.

1. A job that fails for good is kept, with its payload and traceback, until it is retried or discarded.
2. A job that was enqueued in a transaction has a pending row, and each of its ends makes that row final.
3. What the ledger knows to have ended otherwise, in another attempt, has ended as it says.
4. All other outcomes, and those that the job's own transaction has written, go straight to the broker completer.

An outcome stays here, and its lease stays held, until the ledger has taken it. One that cannot be written goes to the
end of the line, so that the others need not wait for it. If the database can never hold its row (its id has a NUL,
say), or refuses it again and again while it takes others, only Redis gets the outcome. A pending row is then made
final without the parts that may be too large: the relay publishes each row that stays pending, and the job would run
again.
"""

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass

from db.transient import is_refused, transient
from worker.engine.broker_completer import BrokerCompleter
from worker.engine.execution import Execution, Phase
from worker.engine.once import outcome_of
from worker.engine.outcome import Outcome, OutcomeKind
from worker.engine.recording import RECORDING
from worker.errors import LedgerBusyError
from worker.exception_codec import error_data
from worker.ledger import FinalRow, Ledger, State
from worker.ledger.batches import batches
from worker.message import serialize

logger = logging.getLogger("worker")

_FAILED = OutcomeKind.FAILED
_BATCH = 200  # outcomes a transaction
# Bytes a transaction. asyncpg sends so much of many rows at once; with more it may wait while it sends, and lose the
# cancellation of a statement that waits for a lock. What is larger goes alone, and then it does not.
_BATCH_BYTES = 64 * 1024
_HOPELESS = 5  # failures of one outcome, after each of which others were written


@dataclass(slots=True, eq=False)
class _Waiting:
    """An outcome on its way to the ledger."""

    execution: Execution
    outcome: Outcome
    ending: FinalRow
    failures: int = 0
    """Failures after each of which other outcomes were written."""
    written_before: int = 0
    """Outcomes that had been written by its last failure."""


class LedgerCompleter:
    """Writes the outcomes of executions to the ledger, and hands them on to the broker completer.

    Args:
        ledger: None: there is none, and all go straight to the broker completer.
    """

    def __init__(self, ledger: Ledger | None, broker_completer: BrokerCompleter) -> None:
        self._ledger = ledger
        self._broker_completer = broker_completer
        self._waiting: deque[_Waiting] = deque()
        self._written = self._written_before_failure = 0
        self._moved_at = 0.0
        self._something = asyncio.Event()
        self._nothing = asyncio.Event()
        self._nothing.set()

    def complete(self, execution: Execution, outcome: Outcome) -> None:
        """Take an outcome. It is written soon, together with others."""
        ending = None if self._ledger is None or outcome.in_ledger else _ending(execution, outcome)
        if ending is None:
            self._broker_completer.complete(execution, outcome)
            return
        execution.phase = Phase.FINISHING
        if not self._waiting:
            self._moved_at = time.monotonic()
        self._waiting.append(_Waiting(execution, outcome, ending))
        self._nothing.clear()
        self._something.set()

    async def run(self) -> None:
        """Write outcomes as they come. A write that fails is repeated by the next run."""
        while True:
            await self._something.wait()
            while self._waiting:
                await self._write(self._first())
            self._something.clear()
            self._nothing.set()

    async def flushed(self) -> None:
        """Wait until the ledger, and then Redis, has taken every outcome."""
        await self._nothing.wait()
        await self._broker_completer.flushed()

    @property
    def standstill(self) -> float:
        """Seconds for which outcomes have waited, and none of them was written."""
        return time.monotonic() - self._moved_at if self._waiting else 0.0

    def _first(self) -> list[_Waiting]:
        """As many as one transaction may write."""
        return next(batches(self._waiting, lambda entry: entry.ending.size, most=_BATCH, most_bytes=_BATCH_BYTES))

    async def _write(self, batch: list[_Waiting]) -> None:
        """Settle a batch in one transaction; where one of its rows is in the way, each in its own."""
        assert self._ledger is not None  # noqa: S101 - otherwise nothing waits
        try:
            standing = await self._ledger.complete([entry.ending for entry in batch])
        except Exception as error:
            if len(batch) > 1 and not _is_away(error):
                for entry in batch:
                    await self._write([entry])
                return
            if len(batch) == 1 and self._is_unwritable(batch[0], error):
                self._give_up(batch[0], error)
                return
            if self._put_off(batch) and not _is_away(error):
                return
            raise
        self._moved_at = time.monotonic()
        self._written += len(batch)
        for entry, known in zip(batch, standing, strict=True):
            self._waiting.remove(entry)
            before = None if known.state is entry.ending.state else outcome_of(known)
            if before is not None:
                logger.info("%s: another attempt of it was completed before: %s", entry.execution.job_id, known.state)
            self._broker_completer.complete(entry.execution, before or entry.outcome)

    def _put_off(self, batch: list[_Waiting]) -> bool:
        """Let others come first; whether any was written since the last failure."""
        for entry in batch:
            self._waiting.remove(entry)
            self._waiting.append(entry)
        others_move = self._written > self._written_before_failure
        self._written_before_failure = self._written
        return others_move

    def _is_unwritable(self, entry: _Waiting, error: Exception) -> bool:
        """Whether the ledger will never take it.

        A row that another attempt holds is about to be made final by that, and a small one does not lose a connection.
        """
        if is_refused(error):
            return True
        is_small = entry.ending.size <= _BATCH_BYTES
        if not isinstance(error, LedgerBusyError) and not (is_small and _is_away(error)):
            entry.failures += self._written > entry.written_before
            entry.written_before = self._written
        return entry.failures >= _HOPELESS

    def _give_up(self, entry: _Waiting, refused: Exception) -> None:
        """Give up on a row that cannot be written. Its outcome is in Redis and in the log."""
        why = getattr(refused, "orig", refused)
        logger.error("%s: the ledger cannot keep what became of it: %s", entry.execution.job_id, why)
        if _is_pending(entry.execution) and entry.ending != (bare := _bare(entry.ending)):
            entry.ending, entry.failures = bare, 0
            return
        self._waiting.remove(entry)
        self._broker_completer.complete(entry.execution, entry.outcome)


def _ending(execution: Execution, outcome: Outcome) -> FinalRow | None:
    """The row that says how the job has ended; None where none is wanted."""
    message, state = execution.message, RECORDING[outcome.kind].state
    if state is None or not execution.is_read or not (message.in_ledger or outcome.kind is _FAILED):
        return None
    ending = FinalRow(
        message.job_id,
        message.enqueued_at,
        _storable(message.task),
        execution.queue,
        state,
        tries=execution.claim.tries + 1,
        started_at=execution.started_at,
    )
    if outcome.error is None:
        return ending._replace(result=outcome.result)
    data = error_data(outcome.error)
    traceback = data.pop("traceback", None)
    return ending._replace(
        payload=execution.claim.payload,
        result=serialize(data),
        error=_storable(f"{data['type']}: {data['message']}"),
        traceback=traceback and _storable(traceback),
    )


def _is_pending(execution: Execution) -> bool:
    """Whether the ledger has had a row for it since it was enqueued."""
    return execution.message.in_ledger


def _bare(ending: FinalRow) -> FinalRow:
    """The row without its large parts; a pending row has its payload already."""
    result = None if ending.state is State.DONE else ending.result
    return ending._replace(payload=None, result=result, traceback=None)


def _storable(text: str) -> str:
    """PostgreSQL's texts cannot hold NUL."""
    return text.replace("\0", "\\x00")


def _is_away(error: Exception) -> bool:
    """Whether it is the database that is in trouble, and not one of the rows."""
    return transient(error) is not None or isinstance(error, OSError)
