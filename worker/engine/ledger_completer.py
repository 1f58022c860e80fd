"""``LedgerCompleter``: write outcomes to the ledger, in batches, before they go to Redis.

1. A job that fails for good is kept, with its payload and traceback, until it is retried or discarded.
2. A job that was enqueued in a transaction has a pending row. Every final outcome makes that row final.
3. If another attempt has made the row final with another state, the ledger's outcome replaces the new one.
4. All other outcomes, and outcomes that the job's own transaction has written, go straight to the broker completer.

An outcome waits here, and its lease is kept, until its row is written. An outcome whose write fails goes to the end of
the queue, so that it does not block the others. If the database can never hold its row (its id has a NUL, say), or
refuses the row repeatedly while it takes others, only Redis gets the outcome. A pending row is then made final without
the parts that may be too large: the relay publishes each row that stays pending, and the job would run again.
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
# Bytes a transaction. asyncpg sends up to this size of many rows at once. With more it may wait while it sends, and
# lose the cancellation of a statement that waits for a lock. A larger row is written alone, which avoids this.
_BATCH_BYTES = 64 * 1024
_MAX_FAILURES = 5  # of one outcome, each followed by the writes of others


@dataclass(slots=True, eq=False)
class _Waiting:
    """An outcome on its way to the ledger."""

    execution: Execution
    outcome: Outcome
    row: FinalRow
    failures: int = 0
    """Failures after each of which other outcomes were written."""
    written_before: int = 0
    """Outcomes that had been written by its last failure."""


class LedgerCompleter:
    """Writes the outcomes of executions to the ledger, and then passes them to the broker completer.

    Args:
        ledger: None means that there is no ledger, and all outcomes go straight to the broker completer.
    """

    def __init__(self, ledger: Ledger | None, broker_completer: BrokerCompleter) -> None:
        self._ledger = ledger
        self._broker_completer = broker_completer
        self._waiting: deque[_Waiting] = deque()
        self._written = self._written_before_failure = 0
        self._last_progress = 0.0
        self._has_work = asyncio.Event()
        self._is_flushed = asyncio.Event()
        self._is_flushed.set()

    def complete(self, execution: Execution, outcome: Outcome) -> None:
        """Queue an outcome to be written, together with others."""
        row = None if self._ledger is None or outcome.in_ledger else _final_row(execution, outcome)
        if row is None:
            self._broker_completer.complete(execution, outcome)
            return
        execution.phase = Phase.FINISHING
        if not self._waiting:
            self._last_progress = time.monotonic()
        self._waiting.append(_Waiting(execution, outcome, row))
        self._is_flushed.clear()
        self._has_work.set()

    async def run(self) -> None:
        """Write queued outcomes, for ever. A write that fails is repeated by the next run."""
        while True:
            await self._has_work.wait()
            while self._waiting:
                await self._write(self._first())
            self._has_work.clear()
            self._is_flushed.set()

    async def flushed(self) -> None:
        """Wait until every outcome is written to the ledger and to Redis."""
        await self._is_flushed.wait()
        await self._broker_completer.flushed()

    @property
    def standstill(self) -> float:
        """Seconds for which outcomes have waited without any being written; 0 if none waits."""
        return time.monotonic() - self._last_progress if self._waiting else 0.0

    def _first(self) -> list[_Waiting]:
        """The oldest outcomes, as many as one transaction may write."""
        return next(batches(self._waiting, lambda entry: entry.row.size, most=_BATCH, most_bytes=_BATCH_BYTES))

    async def _write(self, batch: list[_Waiting]) -> None:
        """Write a batch in one transaction. If that fails because of a row, write each row alone."""
        assert self._ledger is not None  # noqa: S101 - without a ledger, nothing is queued
        try:
            stored_results = await self._ledger.complete([entry.row for entry in batch])
        except Exception as error:
            if len(batch) > 1 and not _is_server_error(error):
                for entry in batch:
                    await self._write([entry])
                return
            if len(batch) == 1 and self._is_unwritable(batch[0], error):
                self._give_up(batch[0], error)
                return
            if self._move_to_end(batch) and not _is_server_error(error):
                return
            raise
        self._last_progress = time.monotonic()
        self._written += len(batch)
        for entry, stored in zip(batch, stored_results, strict=True):
            self._waiting.remove(entry)
            earlier = None if stored.state is entry.row.state else outcome_of(stored)
            if earlier is not None:
                logger.info("job %s: another attempt was completed first: %s", entry.execution.job_id, stored.state)
            self._broker_completer.complete(entry.execution, earlier or entry.outcome)

    def _move_to_end(self, batch: list[_Waiting]) -> bool:
        """Move a batch to the end of the queue. Return whether any outcome was written since the last failure."""
        for entry in batch:
            self._waiting.remove(entry)
            self._waiting.append(entry)
        others_were_written = self._written > self._written_before_failure
        self._written_before_failure = self._written
        return others_were_written

    def _is_unwritable(self, entry: _Waiting, error: Exception) -> bool:
        """Whether the ledger is considered unable to take this row.

        Two failures do not count: another attempt holds the row (it will make the row final itself), and a lost
        connection under a small row (the row cannot have caused it).
        """
        if is_refused(error):
            return True
        is_small = entry.row.size <= _BATCH_BYTES
        if not isinstance(error, LedgerBusyError) and not (is_small and _is_server_error(error)):
            entry.failures += self._written > entry.written_before
            entry.written_before = self._written
        return entry.failures >= _MAX_FAILURES

    def _give_up(self, entry: _Waiting, error: Exception) -> None:
        """Give up on a row that cannot be written: first on its large parts, then on all of it.

        The outcome is still written to Redis and to the log.
        """
        why = getattr(error, "orig", error)
        logger.error("job %s: the ledger cannot store its outcome: %s", entry.execution.job_id, why)
        if _is_pending(entry.execution) and entry.row != (small := _without_large_parts(entry.row)):
            entry.row, entry.failures = small, 0
            return
        self._waiting.remove(entry)
        entry.execution.is_unwritable = True
        self._broker_completer.complete(entry.execution, entry.outcome)


def _final_row(execution: Execution, outcome: Outcome) -> FinalRow | None:
    """The ledger row of a job that is over; None if the ledger needs no row for this outcome."""
    message, state = execution.message, RECORDING[outcome.kind].state
    if state is None or not (message.in_ledger or outcome.kind is _FAILED) or not execution.is_read:
        return None
    row = FinalRow(
        message.job_id,
        message.enqueued_at,
        _escape_nul(message.task),
        execution.queue,
        state,
        tries=execution.claim.tries + 1,
        started_at=execution.started_at,
        parent=message.parent,
        traceparent=message.traceparent,
    )
    if outcome.error is None:
        return row._replace(result=outcome.result)
    data = error_data(outcome.error)
    traceback = data.pop("traceback", None)
    return row._replace(
        payload=execution.claim.payload,
        result=serialize(data),
        error=_escape_nul(f"{data['type']}: {data['message']}"),
        traceback=traceback and _escape_nul(traceback),
    )


def _is_pending(execution: Execution) -> bool:
    """Whether the job has had a ledger row since it was enqueued."""
    return execution.message.in_ledger


def _without_large_parts(row: FinalRow) -> FinalRow:
    """The row without its large parts; a pending row has its payload already."""
    result = None if row.state is State.DONE else row.result
    return row._replace(payload=None, result=result, traceback=None)


def _escape_nul(text: str) -> str:
    """Replace NUL characters, which PostgreSQL's texts cannot hold."""
    return text.replace("\0", "\\x00")


def _is_server_error(error: Exception) -> bool:
    """Whether the database failed, and not one of the rows."""
    return transient(error) is not None or isinstance(error, OSError)
