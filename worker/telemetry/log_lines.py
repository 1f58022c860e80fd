"""Log lines with the job that they belong to, as JSON or as text: ``WORKER_LOG``.

1. `JobFilter` reads the running job from the context when a line is logged. So it finds the job of any logger's line,
   in threads of `asyncio.to_thread` and in child tasks too, and a job that logs nothing pays nothing.
2. A line of JSON is one object, whatever its text holds.
3. A project with a `dictConfig` of its own may use the filter and the formatters in it.
"""

import json
import logging
from datetime import UTC, datetime
from typing import Any, NamedTuple

from db.text.printable import printable
from worker.context import running_job
from worker.telemetry.tracing import active_tracing

_TRACE_ID = slice(3, 35)  # of a traceparent
_PLAIN = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class JobFields(NamedTuple):
    """The fields of a log line that belongs to a job. Outside of jobs they are None."""

    job_id: str | None = None
    task: str | None = None
    attempt: int | None = None
    queue: str | None = None
    trace_id: str | None = None

    @classmethod
    def of(cls, job_id: str, task: str, attempt: int, queue: str, traceparent: str | None) -> "JobFields":
        """The fields of a job that is not the running one."""
        return cls(job_id, task, attempt, queue, trace_id_of(traceparent))


def current_fields() -> JobFields:
    """The fields of the running job, and of the current trace."""
    job, tracing = running_job(), active_tracing()
    trace_id = None if tracing is None else tracing.trace_id()
    if job is None:
        return JobFields(trace_id=trace_id)
    return JobFields(job.job_id, job.task, job.attempt, job.queue, trace_id or trace_id_of(job.traceparent))


def trace_id_of(traceparent: str | None) -> str | None:
    return None if traceparent is None else traceparent[_TRACE_ID]


class JobFilter(logging.Filter):
    """Gives each record the attributes of `JobFields`. An attribute that the record has already stays.

    It belongs on a handler: a logger's filter does not see the records of the loggers below it.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        attributes = record.__dict__
        for name, value in zip(JobFields._fields, current_fields(), strict=True):
            attributes.setdefault(name, value)
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the job's fields, the record's ``extra``, and traceback.

    Args:
        worker: the worker's name, for the field `worker` (default: no such field).
    """

    def __init__(self, worker: str | None = None) -> None:
        super().__init__()
        self._worker = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._worker,
        }
        for name, value in record.__dict__.items():
            if name not in _PLAIN and value is not None:
                line.setdefault(name, value)
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            line["traceback"] = record.exc_text
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return _encoded(line)


class TextFormatter(logging.Formatter):
    """arq's format, and after the message the job's fields: ``10:00:00: hello [job=... task=... attempt=1 ...]``.

    Args:
        worker: the worker's name, before each message (default: none).
    """

    def __init__(self, worker: str | None = None) -> None:
        # The format would take a % in the name for a field.
        before = "" if worker is None else f"{printable(worker).replace('%', '%%')}: "
        super().__init__(f"%(asctime)s: {before}%(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - of logging
        fields = (
            f"{name.removesuffix('_id')}={printable(str(value))}"
            for name in JobFields._fields
            if (value := getattr(record, name, None)) is not None
        )
        suffix = " ".join(fields)
        return super().formatMessage(record) + (suffix and f" [{suffix}]")


def _encoded(line: dict[str, Any]) -> str:
    # As ASCII: the stream may have any encoding, and a lone surrogate has none.
    try:
        return _ENCODER.encode(line)
    except (TypeError, ValueError, RecursionError):  # a key that is no text, a NaN, or an object within itself
        plain = {name: value if isinstance(value, str | int) else _shown(value) for name, value in line.items()}
        return json.dumps(plain)


def _shown(value: Any) -> str:
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001 - a `__str__` may raise anything, and logging must go on
        return f"<cannot be printed: {type(error).__name__}>"


_ENCODER = json.JSONEncoder(default=_shown, allow_nan=False)
