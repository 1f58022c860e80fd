"""``Runner``: run a claimed job, from its claim to its outcome.

recover the payload -> admit -> execute -> complete
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from worker.broker.records import Claim, now_ms
from worker.engine.admission import Admission
from worker.engine.after_job import AfterJob
from worker.engine.execution import Execution
from worker.engine.executions import Executions
from worker.engine.executor import Executor
from worker.engine.job_log import JobLog
from worker.engine.ledger_completer import LedgerCompleter
from worker.engine.outcome import Outcome, OutcomeKind, judge_outside_body
from worker.engine.payload_recovery import PayloadRecovery
from worker.engine.slots import Slots
from worker.engine.unknown_jobs import UnknownJobs
from worker.keeper.table import Place

_POSTPONED = OutcomeKind.POSTPONED


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs claimed jobs, each in an asyncio task of its own."""

    executions: Executions
    slots: Slots
    recovery: PayloadRecovery
    admission: Admission
    executor: Executor
    unknown_jobs: UnknownJobs
    completer: LedgerCompleter
    log: JobLog
    after_job: AfterJob | None

    def start(self, claims: Sequence[Claim], queue: str, token: str, places: Sequence[Place]) -> None:
        """Start the jobs of one claim."""
        loop, limits = asyncio.get_running_loop(), self.admission.widest_limits
        started_at = now_ms()  # one time for all: they begin in the same turn of the loop
        for claim, place in zip(claims, places, strict=True):
            execution = Execution(claim, queue, token, started_at, limits, place)
            execution.asyncio_task = loop.create_task(self._run(execution))
            self.executions.add(execution)

    async def _run(self, execution: Execution) -> None:
        try:
            outcome = await self._outcome(execution)
            execution.ended_at = now_ms()
            self.log.ended(execution, outcome)
            after_job = self.after_job if execution.has_run else None
            if after_job is not None:
                after_job.expect(execution)
            self.completer.complete(execution, outcome)
            if after_job is not None:
                await after_job.call(execution)
        finally:
            self.executions.task_ended(execution)
            if execution.holds_slot:
                self.slots.give_back(execution.claim)

    async def _outcome(self, execution: Execution) -> Outcome:
        try:
            if execution.claim.payload is None:
                await self.recovery.recover(execution)
            outcome = self.admission.admit(execution)
            if not execution.is_read:
                await self.recovery.identify(execution)
            if outcome is None:
                self.executor.enter(execution)
                self.log.started(execution)
                outcome = await self.executor.execute(execution)
            return outcome if outcome.kind is not _POSTPONED else await self.unknown_jobs.judge(execution, outcome)
        except (Exception, asyncio.CancelledError, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 - it is judged
            return judge_outside_body(error, execution.job_id, execution.cancelled_as, is_read=execution.is_read)
