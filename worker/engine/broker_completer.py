"""``BrokerCompleter``: write outcomes to Redis, in batches.

An outcome stays here, and the lease of its job is kept, until Redis has accepted the outcome.
"""

import asyncio
import contextlib
import logging
from collections import defaultdict, deque
from itertools import islice
from typing import Any

from pydantic_core import from_json, to_json

from db.text.printable import first_line
from worker.aio.batching import coalesce
from worker.broker.broker import Broker
from worker.broker.errors import RedisError
from worker.broker.records import Completion, PutBack, now_ms
from worker.engine.execution import Execution, Phase
from worker.engine.executions import Executions
from worker.engine.limits import milliseconds
from worker.engine.measuring import Measuring
from worker.engine.outcome import Outcome, OutcomeKind
from worker.engine.pickles import dump_result
from worker.engine.recording import RECORDING, Action
from worker.errors import TriesExhaustedError
from worker.exception_codec import error_data, message_of
from worker.message import Message, serialize

logger = logging.getLogger("worker")

_ABORTED, _COMPLETED, _FINISHING = OutcomeKind.ABORTED, OutcomeKind.COMPLETED, Phase.FINISHING
_BATCH = 500  # outcomes a round trip
_ENOUGH = 16  # outcomes for which a round trip is made at once
_BATCH_BYTES = 8 * 1024 * 1024  # bytes of results a round trip
_LARGEST_RESULT = 64 * 1024 * 1024  # bytes, the arguments included
_LONGEST_NOTE = 200  # characters
_LARGE = 4096  # bytes of a result of which no second copy is kept

_Waiting = deque[tuple[Execution, Completion, Outcome]]
_Batch = list[tuple[Execution, Completion, Outcome]]


class BrokerCompleter:
    """Writes the outcomes of executions to Redis.

    Args:
        executions: an execution is removed from these once Redis has its outcome.
        measuring: counts the outcomes (default: they are not counted).
        worker_id: the worker that jobs are put back by.
    """

    def __init__(
        self, broker: Broker, executions: Executions, measuring: Measuring | None = None, *, worker_id: str = ""
    ) -> None:
        self._broker = broker
        self._executions = executions
        self._measuring = measuring
        self._worker_id = worker_id
        self._repeated: set[Execution] = set()
        """Executions whose outcome Redis may have already: the reply was lost."""
        self._waiting: defaultdict[str, _Waiting] = defaultdict(deque)
        self._has_outcomes = asyncio.Event()
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    def complete(self, execution: Execution, outcome: Outcome) -> None:
        """Accept an outcome. `run` writes it soon, together with others."""
        action = RECORDING[outcome.kind].action
        if action is None:
            self._executions.remove(execution)
            if self._measuring is not None:
                self._measuring.abandoned(execution)
            return
        execution.phase = _FINISHING
        encoded = completion(execution, outcome, action, self._worker_id)
        if len(outcome.result) > _LARGE:
            outcome = outcome._replace(result=b"")
        self._waiting[execution.queue].append((execution, encoded, outcome))
        self._is_empty.clear()
        self._has_outcomes.set()

    async def run(self) -> None:
        """Write outcomes as they arrive. After a failure, the next call of `run` repeats the write."""
        while True:
            await self._has_outcomes.wait()
            while any(self._waiting.values()):
                await coalesce(lambda: sum(map(len, self._waiting.values())) >= _ENOUGH)
                await self._write_all()
            self._has_outcomes.clear()
            self._is_empty.set()

    async def flushed(self) -> None:
        """Wait until Redis has accepted every outcome."""
        await self._is_empty.wait()

    async def _write_all(self) -> None:
        """Make one round trip a queue. A failed one keeps its outcomes, and does not delay those of other queues."""
        failed: RedisError | OSError | None = None
        for queue, waiting in list(self._waiting.items()):
            try:
                await self._write(queue, waiting)
            except (RedisError, OSError) as error:
                failed = error
        if failed is not None:
            raise failed

    async def _write(self, queue: str, waiting: _Waiting) -> None:
        batch = _next_batch(waiting)
        if not batch:
            return
        try:
            replies = await self._broker.finish(queue, [entry for _, entry, _ in batch])
        except (RedisError, OSError):
            self._repeated.update(execution for execution, *_ in batch)
            raise
        for (execution, _, _), is_ours in zip(batch, replies, strict=True):
            waiting.popleft()
            self._executions.remove(execution)
            if not is_ours:
                logger.warning("the outcome of %s is not written: another worker has taken it over", execution.job_id)
        if self._measuring is not None:
            self._measure(self._measuring, batch, replies)

    def _measure(self, measuring: Measuring, batch: _Batch, replies: list[bool]) -> None:
        """Count the outcomes of a batch. After a lost reply, an outcome that is not ours was written before."""
        if all(replies):
            measuring.recorded(batch)
        else:
            for entry, is_ours in zip(batch, replies, strict=True):
                if is_ours or entry[0] in self._repeated:
                    measuring.recorded([entry])
                else:
                    measuring.abandoned(entry[0])
        if self._repeated:
            self._repeated.difference_update(execution for execution, *_ in batch)


def _next_batch(waiting: _Waiting) -> _Batch:
    """Return as many outcomes as one round trip may carry."""
    batch: _Batch = []
    size = 0
    for entry in islice(waiting, _BATCH):
        size += len(entry[1].value)
        if batch and size > _BATCH_BYTES:
            break
        batch.append(entry)
    return batch


def completion(execution: Execution, outcome: Outcome, action: Action, worker_id: str = "") -> Completion:
    """Encode an outcome for Redis. If the job is put back because of an error, a note says why."""
    claim, keep = execution.claim, execution.limits.keep_result
    if action == "end":
        return Completion(claim.raw_id, execution.token, action, _result(execution, outcome) if keep > 0 else b"", keep)
    delay, tries = milliseconds(outcome.delay), str(claim.tries + 1)
    if outcome.error is not None and action != "back":
        tries += f" {_note(worker_id, outcome.error)}"
    return Completion(claim.raw_id, execution.token, action, claim.payload_to_restore, tries, delay)


def _note(worker_id: str, error: BaseException) -> str:
    if isinstance(error, TriesExhaustedError) and error.__cause__ is not None:
        error = error.__cause__  # the `Retry`; the error itself is for the case that no try is left
    why = first_line(message_of(error))
    if error.__cause__ is not None:
        why += f" ({type(error.__cause__).__name__}: {first_line(message_of(error.__cause__))})"
    return to_json(PutBack(worker_id, type(error).__name__, why[:_LONGEST_NOTE])).decode()


def _result(execution: Execution, outcome: Outcome) -> bytes:
    """Encode the result as arq writes it (``jobs.py``: `serialize_result`), in JSON; for a pickled job as a pickle.

    The arguments are left out if they cannot be encoded, or if the result is too large with them.
    """
    message = execution.message
    encode = _pickled if message.is_pickled else _encoded
    try:
        result = encode(execution, outcome, message)
        if len(result) <= _LARGEST_RESULT:
            return result
    except Exception as error:  # noqa: BLE001 - a class may raise anything where it is pickled
        logger.warning("the arguments of %s are not kept with its result: %s", execution.job_id, error)
    return encode(execution, outcome, message._replace(args=(), kwargs={}))


def _pickled(execution: Execution, outcome: Outcome, message: Message) -> bytes:
    """Pickle the result. If the value that the body returned cannot be pickled, take its JSON form."""
    head = _head(execution, outcome, message)
    if outcome.error is not None:
        return dump_result({**head, "r": outcome.error})
    if outcome.kind is _COMPLETED:
        with contextlib.suppress(Exception):
            return dump_result({**head, "r": execution.returned})
    return dump_result({**head, "r": from_json(outcome.result)})


def _encoded(execution: Execution, outcome: Outcome, message: Message) -> bytes:
    value = outcome.result if outcome.error is None else serialize(error_data(outcome.error))
    return to_json(_head(execution, outcome, message))[:-1] + b',"r":' + value + b"}"


def _head(execution: Execution, outcome: Outcome, message: Message) -> dict[str, Any]:
    """The result without its value."""
    head = {
        "t": execution.claim.tries + 1,
        "f": message.task,
        "a": message.args,
        "k": message.kwargs,
        "et": message.enqueued_at,
        "s": outcome.error is None,
        "st": execution.started_at,
        "ft": execution.ended_at or now_ms(),
        "q": execution.queue,
        "id": execution.job_id,
    }
    if message.parent is not None:
        head["parent"] = message.parent
    if message.traceparent is not None:
        head["traceparent"] = message.traceparent
    if outcome.kind is _ABORTED:
        head = {"aborted": head["et"], **head}
    return head
