"""``JobActions``: abort, run now, retry and discard single jobs by hand.

Bulk actions on failures are in :mod:`worker.admin.failures`.
"""

from datetime import datetime

from worker.admin.deployment import Deployment
from worker.errors import WorkerError


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

    async def abort(
        self, job_id: str, *, actor: str, queue: str | None = None, enqueued_at: datetime | None = None
    ) -> None:
        """Ask for a job to be aborted, without waiting for its end. A waiting job ends without running.

        Raises:
            ActionRefusedError: no such job waits or runs.
        """
        raise NotImplementedError

    async def run_now(
        self, job_id: str, *, actor: str, queue: str | None = None, enqueued_at: datetime | None = None
    ) -> None:
        """Make a waiting job due now: one that is scheduled, was put back, or is not published yet.

        Raises:
            ActionRefusedError: the job runs already, or no such job waits.
        """
        raise NotImplementedError

    async def retry(self, job_id: str, *, actor: str, enqueued_at: datetime | None = None) -> None:
        """Run a failed job again, with the tries of a new job.

        Raises:
            ActionRefusedError: the job is not failed, or its arguments are no longer known.
        """
        raise NotImplementedError

    async def discard(self, job_id: str, *, actor: str, enqueued_at: datetime | None = None) -> None:
        """Discard a failed job, so that it is listed no more.

        Raises:
            ActionRefusedError: the job is not failed.
        """
        raise NotImplementedError
