"""``JobActions``: abort, run now, retry and discard single jobs by hand.

Bulk actions on failures are in :mod:`worker.admin.failures`.
"""

from collections.abc import Sequence
from datetime import datetime

from worker.admin.audit import Recorder
from worker.admin.deployment import Deployment
from worker.broker.records import RunNow, to_ms
from worker.errors import WorkerError
from worker.ledger.admin import JobAdmin, Key
from worker.ledger.audit import AuditRow
from worker.ledger.table import State
from worker.new_job import NewJob


class ActionRefusedError(WorkerError):
    """The action is not possible. The message says why."""


class JobActions:
    """Actions on one job at a time.

    Args:
        deployment: where the jobs are (default: the servers of this process).
        accept_pickle: whether jobs that an arq producer has pickled may be read, to retry them.
    """

    def __init__(self, deployment: Deployment | None = None, *, accept_pickle: bool = False) -> None:
        self._deployment = deployment or Deployment.of_process()
        self._accept_pickle = accept_pickle
        self._recorder = Recorder(self._deployment)

    async def abort(
        self, job_id: str, *, actor: str, queue: str | None = None, enqueued_at: datetime | None = None
    ) -> None:
        """Request that a job is aborted, without waiting for its end. A waiting job ends without running.

        Raises:
            ActionRefusedError: no such job waits or runs.
        """
        broker, ledger, at = self._deployment.broker, self._deployment.ledger, _ms(enqueued_at)
        async with self._recorder.around(_row(actor, "job.abort", job_id, enqueued_at)):
            for name in await self._queues(job_id, queue, at):
                if await broker.abort(name, job_id, at):
                    return
            if ledger is None or not await ledger.abort(job_id, at):
                raise ActionRefusedError(f"job {job_id} neither waits nor runs")

    async def run_now(
        self, job_id: str, *, actor: str, queue: str | None = None, enqueued_at: datetime | None = None
    ) -> None:
        """Make a waiting job due now: one that is scheduled, was put back, or is not published yet.

        A job that is due already keeps its place.

        Raises:
            ActionRefusedError: the job runs already, or no such job waits.
        """
        at = _ms(enqueued_at)
        async with self._recorder.around(_row(actor, "job.run_now", job_id, enqueued_at)) as outcome:
            for name in await self._queues(job_id, queue, at):
                match await self._deployment.broker.run_now(name, job_id, at):
                    case RunNow.RUNS:
                        raise ActionRefusedError(f"job {job_id} runs already")
                    case RunNow.WAS_DUE:
                        outcome.text = "it was due already"
                        return
                    case RunNow.DUE:
                        return
            if not await self._publish(job_id, at):
                raise ActionRefusedError(f"no job {job_id} waits")
            outcome.text = "published"

    async def retry(self, job_id: str, *, actor: str, enqueued_at: datetime | None = None) -> None:
        """Run a failed job again, with the tries of a new job.

        Raises:
            ActionRefusedError: the job is not failed, or its arguments are no longer known.
        """
        admin, key = await self._failed(job_id, _ms(enqueued_at))
        row = _row(actor, "job.retry", job_id, enqueued_at)
        retried, rejections = await admin.retry([key], accept_pickle=self._accept_pickle, audit=row)
        if rejections:
            raise ActionRefusedError(f"job {job_id}: {rejections[0].why}")
        await self._deployment.broker.publish(retried)

    async def discard(self, job_id: str, *, actor: str, enqueued_at: datetime | None = None) -> None:
        """Discard a failed job, so that it is listed no more.

        Raises:
            ActionRefusedError: the job is not failed.
        """
        admin, key = await self._failed(job_id, _ms(enqueued_at))
        rejections = await admin.discard([key], audit=_row(actor, "job.discard", job_id, enqueued_at))
        if rejections:
            raise ActionRefusedError(f"job {job_id}: {rejections[0].why}")

    async def _queues(self, job_id: str, queue: str | None, enqueued_at: int | None) -> Sequence[str]:
        """The queues in which the job may be."""
        if queue is not None:
            return [queue]
        row = None
        if self._deployment.ledger is not None:
            row = await self._deployment.ledger.latest(job_id, enqueued_at)
        return [*dict.fromkeys([*self._deployment.queues, *([] if row is None else [row["queue"]])])]

    async def _publish(self, job_id: str, enqueued_at: int | None) -> bool:
        """Publish a pending row that is not in Redis, due now. False if there is none."""
        row = None if self._deployment.ledger is None else await self._deployment.ledger.pending(job_id)
        if row is None or row.expired or enqueued_at not in (None, row.enqueued_at):
            return False
        job = NewJob(row.id, row.payload, row.task, row.queue, row.enqueued_at, expires=row.patience)
        return any(await self._deployment.broker.publish([job]))

    async def _failed(self, job_id: str, enqueued_at: int | None) -> tuple[JobAdmin, Key]:
        """The key of a failed row."""
        if self._deployment.ledger is None:
            raise ActionRefusedError("this process has no ledger: set DATABASE_URL")
        admin = JobAdmin(self._deployment.ledger.name)
        for row in await admin.all_of(job_id):
            if enqueued_at in (None, row["enqueued_at"]):
                if row["state"] != State.FAILED:
                    raise ActionRefusedError(f"job {job_id} is {row['state']}, not failed")
                return admin, Key(job_id, row["enqueued_at"])
        raise ActionRefusedError(f"the ledger has no job {job_id}")


def _ms(moment: datetime | None) -> int | None:
    return None if moment is None else to_ms(moment)


def _row(actor: str, action: str, job_id: str, enqueued_at: datetime | None) -> AuditRow:
    return AuditRow(actor, action, job_id, {} if enqueued_at is None else {"enqueued_at": enqueued_at})
