"""``JobLog``: write the log lines of jobs, and count their outcomes."""

import logging
from collections import Counter
from typing import Literal

from db.text.printable import first_line
from worker.broker.records import now_ms
from worker.engine.execution import Execution
from worker.engine.outcome import Outcome
from worker.engine.recording import RECORDING
from worker.exception_codec import message_of

logger = logging.getLogger("worker")

LogJobs = Literal["all", "failed", "off"]

_LONGEST_TEXT = 80  # characters of arguments or result in a log line, as in arq


class JobLog:
    """Log lines as arq users know them: → started, ← returned, ↻ runs again, ! failed, ⊘ aborted; and counters.

    Args:
        log_jobs: the jobs that get lines.
    """

    def __init__(self, log_jobs: LogJobs) -> None:
        self._all = log_jobs == "all" and logger.isEnabledFor(logging.INFO)
        self._failed = log_jobs != "off"
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
            f" try={execution.claim.tries + 1}" if execution.claim.tries else "",
        )

    def ended(self, execution: Execution, outcome: Outcome) -> None:
        """Log and count how an attempt of a job has ended."""
        recording = RECORDING[outcome.kind]
        self.counts[recording.counter] += 1
        if not (self._all or (self._failed and recording.counter == "failed")):
            return
        error = outcome.error
        fields = {
            "took": (now_ms() - execution.started_at) / 1000,
            "job": execution.job_id,
            "task": execution.message.task,
            "result": "" if outcome.result == b"null" else _decoded(outcome.result),
            "delay": outcome.delay,
            "type": type(error).__name__,
            "error": "" if error is None else first_line(message_of(error)),
        }
        with_traceback = error if recording.level >= logging.ERROR else None
        logger.log(recording.level, recording.line, fields, exc_info=with_traceback)


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
