"""``Jobs``: finding jobs in every state, and all that is known of one job.

Lists are read by `JobPages`, one job by `JobDetails`, and both write what they find with `JobLines`.
"""

from worker.admin.deployment import Deployment
from worker.admin.job_detail import JobDetail
from worker.admin.job_details import JobDetails
from worker.admin.job_line import Count, JobLine, JobPage
from worker.admin.job_lines import JobLines, Redact
from worker.admin.job_pages import MOST_RUNNING, JobPages
from worker.admin.job_query import JobQuery
from worker.admin.job_state import JobState
from worker.broker.queue_pages import QueuePages
from worker.ledger import State
from worker.ledger.search import JobSearch

PAGE = 50
"""Jobs on one page."""


class Jobs:
    """The jobs of a deployment.

    Args:
        deployment: where the jobs are (default: the servers of this process).
        redact: masks secrets in what is shown and searched.
    """

    def __init__(self, deployment: Deployment | None = None, *, redact: Redact) -> None:
        self._deployment = deployment or Deployment.of_process()
        self._lines = JobLines(redact)
        self._pages = JobPages(self._deployment, self._lines)
        self._details = JobDetails(self._deployment, self._lines)
        self._queues = QueuePages(self._deployment.broker.connections)
        ledger = self._deployment.ledger
        self._search = None if ledger is None else JobSearch(ledger.name)

    async def page(self, query: JobQuery, after: str | None = None, limit: int = PAGE) -> JobPage:
        """A page of jobs.

        Args:
            after: `next` of the page before.

        Raises:
            ValueError: `after` is no place.
        """
        return await self._pages.page(query, after, limit)

    async def detail(self, job_id: str, enqueued_at: int | None = None) -> JobDetail | None:
        """A job: the one that was enqueued at this time, or the last one of this id. None if there is none."""
        return await self._details.detail(job_id, enqueued_at)

    async def counts(self) -> dict[JobState, Count]:
        """The number of jobs in each state."""
        now = await self._queues.now()
        by_queue = await self._queues.count(self._deployment.queues, now)
        running = sum([len(await self._queues.running(name, now, MOST_RUNNING)) for name in self._deployment.queues])
        later = sum(count.later for count in by_queue.values())
        counts = {
            JobState.SCHEDULED: Count(max(later - running, 0)),
            JobState.WAITING: Count(sum(count.due for count in by_queue.values())),
            JobState.RUNNING: Count(running, running >= MOST_RUNNING),
        }
        for state in JobState:
            if state.is_ended:
                number = 0 if self._search is None else await self._search.count(State(state))
                counts[state] = Count.up_to(number)
        return counts

    async def children(self, job_id: str, limit: int = 20) -> list[JobLine]:
        """The jobs that a job has enqueued, as far as the ledger knows."""
        rows = [] if self._search is None else await self._search.children(job_id, limit)
        return [self._lines.of_row(row) for row in rows]
