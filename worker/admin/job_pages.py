"""``JobPages``: list jobs page by page.

1. Scheduled, waiting and running jobs are read from Redis, ended ones from the ledger. Of ended jobs without a job row
   Redis has the latest thousand of each queue.
2. A page is read by its place (keyset). A filter that no index serves ends with the page or with its time, and the next
   page goes on there.
"""

import time
from collections.abc import Mapping, Sequence

from pydantic_core import from_json, to_json

from worker.admin.deployment import Deployment
from worker.admin.job_line import JobLine, JobPage
from worker.admin.job_lines import JobLines
from worker.admin.job_query import JobQuery
from worker.admin.job_state import JobState
from worker.admin.running_jobs import holders
from worker.broker.queue_pages import QueuedJob, QueuePages
from worker.ledger import State
from worker.ledger.search import JobSearch, Place, RowFilter
from worker.metrics.reader import MetricsReader

MOST_RUNNING = 1_000
"""The most running jobs of a queue that are listed."""
_BUDGET = 0.12  # seconds after which a search in a queue reads no more of it
_SCAN = 250  # jobs of a queue that are read at once
_SCAN_WHOLE = 100  # likewise, with their whole payloads


class JobPages:
    """The lists of jobs of a deployment.

    Args:
        lines: writes their lines.
    """

    def __init__(self, deployment: Deployment, lines: JobLines) -> None:
        self._deployment = deployment
        self._lines = lines
        self._queues = QueuePages(deployment.broker.connections)
        self._metrics = MetricsReader(deployment.broker)
        self._search = None if deployment.ledger is None else JobSearch(deployment.ledger.name)

    async def page(self, query: JobQuery, after: str | None, limit: int) -> JobPage:
        """A page of jobs.

        Args:
            after: `next` of the page before.

        Raises:
            ValueError: `after` is no place.
        """
        if query.id is not None:
            return await self._with_id(query.id, limit)
        match query.state:
            case JobState.RUNNING:
                return await self._running(query, limit)
            case JobState.SCHEDULED | JobState.WAITING:
                return await self._queued(query, after, limit)
            case _:
                return await self._ended(query, after, limit)

    async def _ended(self, query: JobQuery, after: str | None, limit: int) -> JobPage:
        place = None if after is None else _row_place(after)
        lines, searched_to = await self._ended_rows(query, place, limit + 1)
        if query.text is None:  # their arguments are not known
            others = await self._ended_without_row(query, place)
            lines += [line for line in others if searched_to is None or line.place > searched_to]
        lines.sort(key=lambda line: line.place, reverse=True)
        shown, has_more = lines[:limit], len(lines) > limit
        following = shown[-1].place if has_more else searched_to
        if query.text is not None and self._search is not None:
            payloads = await self._search.payloads([(line.id, line.enqueued_at or 0) for line in shown])
            shown = [line for line in shown if self._shows(line, payloads.get((line.id, line.enqueued_at or 0)), query)]
        return JobPage(
            shown,
            None if following is None else to_json(following).decode(),
            None if searched_to is None or has_more else searched_to.finished_at,
        )

    async def _ended_rows(self, query: JobQuery, place: Place | None, limit: int) -> tuple[list[JobLine], Place | None]:
        if self._search is None:
            return [], None
        row_filter = RowFilter(query.task, query.queue, query.error, query.text, query.since, query.until)
        found = await self._search.ended(State(query.state), row_filter, place, limit)
        return [self._lines.of_row(row) for row in found.rows], found.searched_to

    async def _ended_without_row(self, query: JobQuery, place: Place | None) -> list[JobLine]:
        queues = [name for name in self._deployment.queues if query.queue in (None, name)]
        lines = [self._lines.of_ended(queue, job) for queue in queues for job in await self._metrics.latest(queue)]
        return [line for line in lines if _matches(line, query) and (place is None or line.place < place)]

    async def _queued(self, query: JobQuery, after: str | None, limit: int) -> JobPage:
        """Scheduled or waiting jobs in the order of their due times, one queue after the other."""
        now = await self._queues.now()
        queues = [name for name in self._deployment.queues if query.queue in (None, name)]
        place = None if after is None else _queue_place(after)
        if place is not None:
            queues = queues[queues.index(place[0]) :] if place[0] in queues else []
        scheduled = query.state is JobState.SCHEDULED
        first = float(max(now if scheduled else 0, query.since or 0))
        ends = time.monotonic() + _BUDGET
        size = limit + 1 if not (query.is_filtered or scheduled) else _SCAN if query.text is None else _SCAN_WHOLE
        lines: list[JobLine] = []
        last: QueuedJob | None = None
        for name in queues:
            at = None if place is None or place[0] != name else place[1:]
            while True:
                jobs = await self._queues.scan(name, at, first, size)
                payloads = await self._payloads(jobs, query)
                for job in jobs:
                    if (not scheduled and job.score > now) or (query.until is not None and job.score > query.until):
                        jobs = []
                        break
                    if len(lines) == limit:
                        assert last is not None  # noqa: S101 - there are lines
                        return JobPage(lines, _queue_cursor(last), None)
                    last = job
                    line = None if job.in_progress else self._matching(job, query, now, payloads)
                    if line is not None:
                        lines.append(line)
                if len(jobs) < size:
                    break
                at = (jobs[-1].score, jobs[-1].id)
                if time.monotonic() > ends:
                    return JobPage(lines, _queue_cursor(jobs[-1]), int(jobs[-1].score))
        return JobPage(lines, None, None)

    async def _running(self, query: JobQuery, limit: int) -> JobPage:
        now, by_job = await self._queues.now(), await holders(self._deployment, self._metrics)
        lines: list[JobLine] = []
        for name in self._deployment.queues:
            if query.queue in (None, name):
                jobs = await self._queues.running(name, now, MOST_RUNNING)
                payloads = await self._payloads(jobs, query)
                for job in jobs:
                    if len(lines) < limit and (line := self._matching(job, query, now, payloads)) is not None:
                        holder = by_job.get(line.id)
                        lines.append(line if holder is None else holder.on(line))
        return JobPage(lines, None, None)

    async def _with_id(self, prefix: str, limit: int) -> JobPage:
        """Jobs whose ids begin so in the ledger, and the job of exactly this id in Redis."""
        now = await self._queues.now()
        lines = [self._lines.of_queued(job, now) for job in await self._queues.find(self._deployment.queues, prefix)]
        known = {(line.id, line.enqueued_at) for line in lines}
        rows = [] if self._search is None else await self._search.by_id(prefix, limit)
        lines += [self._lines.of_row(row) for row in rows if (row.id, row.enqueued_at) not in known]
        return JobPage(lines[:limit], None, None)

    async def _payloads(self, jobs: Sequence[QueuedJob], query: JobQuery) -> dict[str, bytes | None]:
        """The whole payloads of jobs of one queue, if the query needs them."""
        if query.text is None or not jobs:
            return {}
        ids = [job.id for job in jobs]
        return dict(zip(ids, await self._queues.payloads(jobs[0].queue, ids), strict=True))

    def _matching(
        self, job: QueuedJob, query: JobQuery, now: int, payloads: Mapping[str, bytes | None]
    ) -> JobLine | None:
        line = self._lines.of_queued(job, now)
        if query.task is not None and line.task != query.task:
            return None
        if query.error is not None:
            return None  # only ended jobs have an error
        if query.text is not None and not self._shows(line, payloads.get(job.id), query):
            return None
        return line

    def _shows(self, line: JobLine, payload: bytes | None, query: JobQuery) -> bool:
        """Whether the arguments, as they are shown, contain the text of the query."""
        part = to_json(query.text)[1:-1]
        if payload is None or part not in payload:  # most are not decoded
            return False
        arguments, _ = self._lines.arguments(line.task, payload)
        return arguments is not None and part in to_json(arguments, inf_nan_mode="constants", fallback=repr)


def _matches(line: JobLine, query: JobQuery) -> bool:
    """Whether an ended job without a row belongs into a list."""
    finished_at = line.finished_at or 0
    return (
        line.state is query.state
        and query.task in (None, line.task)
        and (query.error is None or query.error.casefold() in (line.error or "").casefold())
        and (query.since is None or finished_at >= query.since)
        and (query.until is None or finished_at <= query.until)
    )


def _row_place(after: str) -> Place:
    match from_json(after):
        case [int() as finished_at, str() as job_id, int() as enqueued_at]:
            return Place(finished_at, job_id, enqueued_at)
    raise ValueError("this is no place in the list")


def _queue_place(after: str) -> tuple[str, float, str]:
    match from_json(after):
        case [str() as queue, float() | int() as score, str() as job_id]:
            return queue, float(score), job_id
    raise ValueError("this is no place in the list")


def _queue_cursor(job: QueuedJob) -> str:
    return to_json([job.queue, job.score, job.id]).decode()
