"""``RunningJobs``: which worker runs which job, as the workers report it."""

from dataclasses import replace
from typing import NamedTuple

from worker.admin.deployment import Deployment
from worker.admin.job_detail import Attempt
from worker.admin.job_line import JobLine
from worker.broker.records import to_ms
from worker.metrics.reader import MetricsReader
from worker.metrics.records import RunningJob


class Holder(NamedTuple):
    """The worker that runs a job."""

    worker: str
    job: RunningJob

    @property
    def attempt(self) -> Attempt:
        """The attempt that goes on."""
        return Attempt(self.job.attempt, "running", self.worker, to_ms(self.job.since))

    def on(self, line: JobLine) -> JobLine:
        """The line of the job, with its worker."""
        return replace(line, worker=self.worker, started_at=to_ms(self.job.since))


async def holders(deployment: Deployment, metrics: MetricsReader) -> dict[str, Holder]:
    """The workers that run jobs now, by the job's id."""
    workers = await metrics.workers(deployment.queues)
    return {job.id: Holder(worker.id, job) for worker in workers if not worker.is_silent for job in worker.jobs}
