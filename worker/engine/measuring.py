"""``Measuring``: count each job in the `Meter` when Redis has its outcome, so that no outcome is counted twice.

This costs a no-op job half a microsecond, and no I/O: `Reporter` writes the counts to Redis. Jobs are counted a batch
at a time, and short times are looked up in a table: without that a job would pay twice as much. Of more than a thousand
ended jobs between two reports only the first are listed, as most of the others could not be seen in any case.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from typing import Any

from db.text.printable import first_line
from worker.broker.metrics import MOST_LATEST
from worker.engine.execution import Execution
from worker.engine.outcome import Outcome, OutcomeKind
from worker.engine.recording import RECORDING
from worker.exception_codec import message_of
from worker.metrics.counts import BOUNDS, BUSY, OUTCOMES, RAN, WAITED
from worker.metrics.meter import WAITED_SUM, EndedFields, Meter

_COMPLETED, _FAILED, _ABANDONED = OutcomeKind.COMPLETED, OutcomeKind.FAILED, OutcomeKind.ABANDONED
_NAMES = {kind: kind.value for kind in OutcomeKind}  # CPython 3.11 takes 0.5 µs to read an enum's value
_LANES = {kind: OUTCOMES.index(kind.value) for kind in OutcomeKind}
_ENDS = frozenset(kind for kind, recording in RECORDING.items() if recording.action == "end")

_LONGEST_ERROR = 200  # characters
_LONG = 1000  # milliseconds
_SHORT = tuple(bisect_left(BOUNDS, duration) for duration in range(_LONG))

_Place = tuple[list[int], deque[EndedFields]]
"""Where the jobs of a task are counted: its row, and the latest ended jobs of its queue."""


class Measuring:
    """Counts executions whose outcome is recorded.

    Args:
        has_ledger: whether failed jobs, and jobs that were enqueued in a transaction, have a job row.
    """

    def __init__(self, meter: Meter, *, has_ledger: bool) -> None:
        self._meter = meter
        self._has_ledger = has_ledger
        self._places: dict[str, dict[str, _Place]] = {}

    def recorded(self, recorded: Iterable[tuple[Execution, Any, Outcome]]) -> None:
        """Count attempts whose outcomes Redis has accepted."""
        places, lanes, names = self._places, _LANES, _NAMES
        for execution, _, outcome in recorded:
            message, kind = execution.message, outcome.kind
            try:
                row, latest = places[execution.queue][message.task]
            except KeyError:
                row, latest = self._place(execution.queue, message.task)
            row[lanes[kind]] += 1
            if execution.has_run:
                began = execution.started_at
                if (ran := execution.ended_at - began) > 0:
                    row[BUSY] += ran
                    row[RAN + (_SHORT[ran] if ran < _LONG else bisect_left(BOUNDS, ran))] += 1
                else:
                    row[RAN] += 1
                if (waited := began - execution.context.score) > 0:
                    row[WAITED_SUM] += waited
                    row[WAITED + (_SHORT[waited] if waited < _LONG else bisect_left(BOUNDS, waited))] += 1
                else:
                    row[WAITED] += 1
            claim = execution.claim
            if claim.crashes:
                self._meter.crashes += claim.crashes
            if (
                len(latest) < MOST_LATEST
                and not (message.in_ledger or outcome.in_ledger)
                and (kind is _COMPLETED or self._ends_without_row(execution, kind))
            ):
                ended = message.enqueued_at, execution.started_at, execution.ended_at, claim.tries + 1
                error = outcome.error
                text = "" if error is None else _text(error)
                latest.append((execution.job_id, message.task, names[kind], *ended, text))

    def abandoned(self, execution: Execution) -> None:
        """Count an attempt whose job another worker holds by now."""
        row, _ = self._place(execution.queue, execution.message.task)
        row[_LANES[_ABANDONED]] += 1
        self._meter.leases_lost += 1

    def _place(self, queue: str, task: str) -> _Place:
        place = self._meter.row(queue, task), self._meter.latest(queue)
        if task in self._meter.tasks:  # other names come from outside, and there may be any number of them
            self._places.setdefault(queue, {})[task] = place
        return place

    def _ends_without_row(self, execution: Execution, kind: OutcomeKind) -> bool:
        return kind in _ENDS and (kind is not _FAILED or not self._has_ledger or execution.is_unwritable)


def _text(error: BaseException) -> str:
    """The type and the first line of an error."""
    return first_line(f"{type(error).__name__}: {message_of(error)}"[: 4 * _LONGEST_ERROR])[:_LONGEST_ERROR]
