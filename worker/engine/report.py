"""What the engine says of a job: to Redis, as a settlement; to people, as a log line; to the counters."""

import logging
from dataclasses import dataclass
from typing import Literal

from pydantic_core import to_json

from db.printable import first_line
from worker.engine.held import HeldJob
from worker.engine.outcome import Kind, Outcome
from worker.exchange import Settlement, now_ms
from worker.failure import error_data, message_of
from worker.message import Message, serialize
from worker.options import LONGEST

logger = logging.getLogger("worker")

LogJobs = Literal["all", "failed", "off"]

_ACTIONS = {Kind.RETRIED: "again", Kind.INTERRUPTED: "back", Kind.POSTPONED: "later"}
_ABORTED = Kind.ABORTED
_DONE = frozenset({Kind.COMPLETED, Kind.DUPLICATE})
_FAILED = frozenset({Kind.FAILED, Kind.ABORTED, Kind.EXPIRED})
_LARGEST_RESULT = 64 * 1024 * 1024  # bytes, the arguments included
_LONGEST_TEXT = 80  # characters of arguments or result in a log line, as in arq


@dataclass(slots=True)
class Counts:
    """What this worker's jobs became, since it started."""

    done: int = 0
    failed: int = 0
    retried: int = 0

    def add(self, kind: Kind) -> None:
        if kind in _DONE:
            self.done += 1
        elif kind is Kind.RETRIED:
            self.retried += 1
        elif kind in _FAILED:
            self.failed += 1


def settlement(job: HeldJob, outcome: Outcome, *, keep: int) -> Settlement:
    """What Redis is told; `keep` is how many milliseconds the result is kept."""
    action = _ACTIONS.get(outcome.kind)
    if action is None:
        return Settlement(job.claim.raw_id, job.token, "end", _result(job, outcome) if keep > 0 else b"", keep)
    value = job.claim.payload or b""
    return Settlement(job.claim.raw_id, job.token, action, value, keep, milliseconds(outcome.delay))


def _result(job: HeldJob, outcome: Outcome) -> bytes:
    """The result as arq writes it (``jobs.py``: `serialize_result`), in JSON.

    Without the arguments where JSON cannot say them (a pickle held them), or where they are what makes it too large.
    """
    message = job.delivery.message if job.delivery is not None else None
    try:
        result = _encoded(job, outcome, message)
        if len(result) <= _LARGEST_RESULT:
            return result
    except ValueError as error:
        logger.warning("the arguments of %s are not kept with its result: %s", job.job_id, error)
    return _encoded(job, outcome, message and message._replace(args=(), kwargs={}))


def _encoded(job: HeldJob, outcome: Outcome, message: Message | None) -> bytes:
    success = outcome.error is None
    value = outcome.result if outcome.error is None else serialize(error_data(outcome.error))
    head = {
        "t": job.claim.tries + 1,
        "f": message.task if message else "<unknown>",
        "a": message.args if message else (),
        "k": message.kwargs if message else {},
        "et": message.enqueued_at if message else 0,
        "s": success,
        "st": job.started_at,
        "ft": now_ms(),
        "q": job.queue,
        "id": job.job_id,
    }
    if outcome.kind is _ABORTED:
        head = {"aborted": head["et"], **head}
    return to_json(head)[:-1] + b',"r":' + value + b"}"


def milliseconds(seconds: float) -> int:
    """For Redis, which knows no longer time than `LONGEST`."""
    return round(min(seconds, LONGEST) * 1000)


class JobLog:
    """Log lines as arq users know them: → started, ← returned, ↻ runs again, ! failed, ⊘ aborted."""

    def __init__(self, which: LogJobs) -> None:
        self._all = which == "all" and logger.isEnabledFor(logging.INFO)
        self._failed = which != "off"

    def started(self, job: HeldJob) -> None:
        if not self._all or job.delivery is None:
            return
        message = job.delivery.message
        waited = (job.started_at - message.enqueued_at) / 1000
        again = f" try={job.claim.tries + 1}" if job.claim.tries else ""
        logger.info(
            "%6.2fs → %s:%s(%s)%s", waited, job.job_id, message.task, _arguments(message.args, message.kwargs), again
        )

    def ended(self, job: HeldJob, outcome: Outcome) -> None:
        if not (self._all or (self._failed and outcome.kind in _FAILED)):
            return
        name = job.delivery.message.task if job.delivery is not None else "<unknown>"
        took = (now_ms() - job.started_at) / 1000
        match outcome.kind:
            case Kind.COMPLETED | Kind.DUPLICATE:
                result = "" if outcome.result == b"null" else _decoded(outcome.result)
                logger.info("%6.2fs ← %s:%s ● %s", took, job.job_id, name, result)
            case Kind.RETRIED:
                logger.info("%6.2fs ↻ %s:%s retrying job in %0.2fs", took, job.job_id, name, outcome.delay)
            case Kind.INTERRUPTED:
                logger.info("%6.2fs ↻ %s:%s interrupted, will be run again", took, job.job_id, name)
            case Kind.POSTPONED:
                logger.warning("%6.2fs ↻ %s:%s: %s, put back", took, job.job_id, name, outcome.error)
            case Kind.ABANDONED:
                logger.info("%6.2fs ↻ %s:%s left to the worker that holds it now", took, job.job_id, name)
            case Kind.ABORTED:
                logger.info("%6.2fs ⊘ %s:%s aborted", took, job.job_id, name)
            case Kind.FAILED | Kind.EXPIRED:
                error = outcome.error
                kind, message = type(error).__name__, "" if error is None else first_line(message_of(error))
                logger.error("%6.2fs ! %s:%s failed, %s: %s", took, job.job_id, name, kind, message, exc_info=error)


def _arguments(args: tuple[object, ...], kwargs: object) -> str:
    items = [_repr(value) for value in args]
    if isinstance(kwargs, dict):
        items += [f"{name}={_repr(value)}" for name, value in kwargs.items()]
    return _shortened(", ".join(items))


def _repr(value: object) -> str:
    """Of a long text only as much as may be shown."""
    return repr(value[: _LONGEST_TEXT + 1] if isinstance(value, str | bytes) else value)


def _decoded(result: bytes) -> str:
    """Likewise; a character has up to four bytes."""
    return _shortened(result[: 4 * (_LONGEST_TEXT + 1)].decode(errors="replace"))


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"
