"""``RECORDING``: one table of how each kind of outcome is written to the ledger, Redis, the log and the counters."""

import logging
from typing import Literal, NamedTuple

from worker.engine.outcome import OutcomeKind
from worker.ledger import State

Action = Literal["end", "again", "back", "later"]
"""The action of ``scripts/finish.lua`` on the job."""
Counter = Literal["done", "failed", "retried"]
COUNTERS: tuple[Counter, ...] = ("done", "failed", "retried")


class Recording(NamedTuple):
    """How outcomes of one kind are written."""

    state: State | None
    """The state of the job's row in the ledger. None: the job is not over, or its row is final already."""
    action: Action | None
    """None: another worker holds the job, and nothing is sent to Redis."""
    counter: Counter | None
    level: int
    """Of the log line."""
    line: str
    """The log line, as arq users know it, with the fields of `JobLog.ended`."""


_DONE = "%(took)6.2fs ← %(job)s:%(task)s ● %(result)s"
_FAILED = "%(took)6.2fs ! %(job)s:%(task)s failed, %(type)s: %(error)s"

ASKED_TO_RUN_AGAIN = "%(took)6.2fs ↻ %(job)s:%(task)s cancelled, will be run again"
"""The log line of a `RETRIED` job that has raised arq's `RetryJob`, or a `CancelledError` of its own."""

RECORDING: dict[OutcomeKind, Recording] = {
    OutcomeKind.COMPLETED: Recording(State.DONE, "end", "done", logging.INFO, _DONE),
    OutcomeKind.DUPLICATE: Recording(None, "end", "done", logging.INFO, _DONE),
    OutcomeKind.FAILED: Recording(State.FAILED, "end", "failed", logging.ERROR, _FAILED),
    OutcomeKind.EXPIRED: Recording(State.EXPIRED, "end", "failed", logging.ERROR, _FAILED),
    OutcomeKind.ABORTED: Recording(
        State.ABORTED, "end", "failed", logging.INFO, "%(took)6.2fs ⊘ %(job)s:%(task)s aborted"
    ),
    OutcomeKind.RETRIED: Recording(
        None, "again", "retried", logging.INFO, "%(took)6.2fs ↻ %(job)s:%(task)s retrying job in %(delay)0.2fs"
    ),
    OutcomeKind.INTERRUPTED: Recording(
        None, "back", None, logging.INFO, "%(took)6.2fs ↻ %(job)s:%(task)s interrupted, will be run again"
    ),
    OutcomeKind.POSTPONED: Recording(
        None, "later", None, logging.WARNING, "%(took)6.2fs ↻ %(job)s:%(task)s: %(error)s, put back"
    ),
    OutcomeKind.ABANDONED: Recording(
        None, None, None, logging.INFO, "%(took)6.2fs ↻ %(job)s:%(task)s left to the worker that holds it now"
    ),
}
