"""``Measuring``: count each job in the `Meter` when Redis has its outcome, so that no outcome is counted twice.

This costs a job about a microsecond, and no I/O. `Reporter` writes the counts to Redis.
"""

from bisect import bisect_left

from db.text.printable import first_line
from worker.engine.execution import Execution
from worker.engine.outcome import Outcome, OutcomeKind
from worker.engine.recording import RECORDING
from worker.exception_codec import message_of
from worker.metrics.counts import BOUNDS, BUSY, OUTCOMES, RAN, WAITED
from worker.metrics.meter import WAITED_SUM, Meter
from worker.metrics.records import EndedJob

_FAILED, _ABANDONED = OutcomeKind.FAILED, OutcomeKind.ABANDONED
_LANES = {kind: OUTCOMES.index(kind.value) for kind in OutcomeKind}
_LONGEST_ERROR = 200  # characters


class Measuring:
    """Counts executions whose outcome is recorded.

    Args:
        has_ledger: whether failed jobs, and jobs that were enqueued in a transaction, have a job row.
    """

    def __init__(self, meter: Meter, *, has_ledger: bool) -> None:
        self._meter = meter
        self._has_ledger = has_ledger
        self._rows: dict[tuple[str, str], list[int]] = {}

    def ended(self, execution: Execution, outcome: Outcome) -> None:
        """Count an attempt of a job whose outcome Redis has accepted."""
        message, claim, kind = execution.message, execution.claim, outcome.kind
        key = execution.queue, message.task
        row = self._rows.get(key)
        if row is None:
            row = self._find_row(key)
        row[_LANES[kind]] += 1
        if execution.has_run:
            began = execution.started_at
            ran, waited = max(execution.ended_at - began, 0), max(began - execution.due, 0)
            row[BUSY] += ran
            row[WAITED_SUM] += waited
            row[RAN + bisect_left(BOUNDS, ran)] += 1
            row[WAITED + bisect_left(BOUNDS, waited)] += 1
        if claim.crashes:
            self._meter.crashes += claim.crashes
        if not (message.in_ledger or outcome.in_ledger):
            self._keep_without_row(execution, outcome)

    def abandoned(self, execution: Execution) -> None:
        """Count an attempt whose job another worker holds by now."""
        self._find_row((execution.queue, execution.message.task))[_LANES[_ABANDONED]] += 1
        self._meter.leases_lost += 1

    def _find_row(self, key: tuple[str, str]) -> list[int]:
        row = self._meter.row(*key)
        if key[1] in self._meter.tasks:  # other names come from outside, and there may be any number of them
            self._rows[key] = row
        return row

    def _keep_without_row(self, execution: Execution, outcome: Outcome) -> None:
        """Keep a job that is over, if the ledger has no row of it."""
        kind, error, message = outcome.kind, outcome.error, execution.message
        if RECORDING[kind].action != "end" or (kind is _FAILED and self._has_ledger and not execution.is_unwritable):
            return
        job = EndedJob(
            execution.job_id,
            message.task,
            kind.value,
            message.enqueued_at,
            execution.started_at,
            execution.ended_at,
            execution.claim.tries + 1,
            error="" if error is None else _text(error),
        )
        self._meter.ended_without_row(execution.queue, job)


def _text(error: BaseException) -> str:
    return first_line(f"{type(error).__name__}: {message_of(error)}"[: 4 * _LONGEST_ERROR])[:_LONGEST_ERROR]
