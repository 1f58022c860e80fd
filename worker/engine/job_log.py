"""``JobLog``: write the log lines of jobs, and count their outcomes."""

import asyncio
import logging
from collections import Counter
from typing import Literal

from db.text.printable import first_line
from worker.engine.execution import Execution
from worker.engine.outcome import Outcome
from worker.engine.recording import ASKED_TO_RUN_AGAIN, RECORDING, Recording
from worker.exception_codec import message_of
from worker.telemetry.log_lines import JobFields

logger = logging.getLogger("worker")

LogJobs = Literal["all", "failed", "off"]

_LATE = 1200  # milliseconds after its due time, as in arq
_LONGEST_TEXT = 80  # characters of arguments or result in a log line, as in arq


class JobLog:
    """Log lines as arq users know them: → started, ← returned, ↻ runs again, ! failed, ⊘ aborted; and counters.

    Args:
        log_jobs: the jobs that get lines.
        log_results: whether the lines have the results.
    """

    def __init__(self, log_jobs: LogJobs, *, log_results: bool = True) -> None:
        self._all = log_jobs == "all" and logger.isEnabledFor(logging.INFO)
        self._failed = log_jobs != "off"
        self._results = log_results
        self.counts: Counter[str | None] = Counter()
        """Outcomes by counter, since the worker started."""

    def started(self, execution: Execution) -> None:
        """Log that a job starts."""
        message = execution.message
        if not self._all:
            return
        logger.info(
            "%6.2fs → %s:%s(%s)%s",
            (execution.started_at - message.enqueued_at) / 1000,
            execution.job_id,
            message.task,
            _arguments(message.args, message.kwargs),
            (f" try={execution.claim.tries + 1}" if execution.claim.tries else "") + _delay(execution),
        )

    def ended(self, execution: Execution, outcome: Outcome) -> None:
        """Log and count how an attempt of a job has ended."""
        recording = RECORDING[outcome.kind]
        self.counts[recording.counter] += 1
        if not (self._all or (self._failed and recording.counter == "failed")):
            return
        error = outcome.error
        fields = {
            "took": (execution.ended_at - execution.started_at) / 1000,
            "job": execution.job_id,
            "task": execution.message.task,
            "result": _decoded(outcome.result) if self._results and outcome.result != b"null" else "",
            "delay": outcome.delay,
            "type": type(error).__name__,
            "error": "" if error is None else first_line(message_of(error)),
        }
        with_traceback = error if recording.level >= logging.ERROR else None
        line = ASKED_TO_RUN_AGAIN if error is not None and _asks_to_run_again(error, recording) else recording.line
        extra = _extra(with_traceback)
        if error is not None and not execution.is_admitted:
            extra = {**_fields(execution), **(extra or {})}
        logger.log(recording.level, line, fields, exc_info=with_traceback, extra=extra)


def _delay(execution: Execution) -> str:
    """How late the job starts, in arq's words, if it is late."""
    late = execution.started_at - execution.due
    return f" delayed={late / 1000:0.2f}s" if late > _LATE else ""


def _asks_to_run_again(error: BaseException, recording: Recording) -> bool:
    """Whether it runs again by arq's `RetryJob`, or a `CancelledError` of its own. arq has another line for that."""
    asks = isinstance(error, asyncio.CancelledError) or any(kind.__name__ == "RetryJob" for kind in type(error).__mro__)
    return asks and recording.counter == "retried"


def _fields(execution: Execution) -> dict[str, object]:
    """The fields of a job that was refused: it has never been the running one, where log lines find theirs."""
    message = execution.message
    attempt = execution.claim.tries + 1
    return JobFields.of(execution.job_id, message.task, attempt, execution.queue, message.traceparent)._asdict()


def _extra(error: BaseException | None) -> dict[str, object] | None:
    """The record's ``extra``: what the error has as ``extra``, as arq logs it."""
    try:
        extra = getattr(error, "extra", None)
        return None if extra is None else {"extra": extra() if callable(extra) else extra}
    except Exception:
        logger.exception("the extra of %s cannot be logged", type(error).__name__)
        return None


def _arguments(args: tuple[object, ...], kwargs: object) -> str:
    items = [_repr(value) for value in args]
    if isinstance(kwargs, dict):
        items += [f"{name}={_repr(value)}" for name, value in kwargs.items()]
    return _shortened(", ".join(items))


def _repr(value: object) -> str:
    """Return the `repr` of a value. A long text is cut first."""
    return repr(value[: _LONGEST_TEXT + 1] if isinstance(value, str | bytes) else value)


def _decoded(result: bytes) -> str:
    """Decode a result. A long result is cut first; a character has up to four bytes."""
    return _shortened(result[: 4 * (_LONGEST_TEXT + 1)].decode(errors="replace"))


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"
