"""``Jobs``: what a test asks and lets happen. Everything is as in a worker, but the queue is in memory."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ParamSpec, TypeVar

from db.text.plural import plural
from worker.broker.records import now_ms
from worker.client.enqueue_time import enqueue_time
from worker.config import Config
from worker.context import from_milliseconds
from worker.errors import WorkerError
from worker.job import Job
from worker.job_ids import new_job_id
from worker.message import Envelope
from worker.new_job import NewJob
from worker.task import Task
from worker.testing.clock import Clock
from worker.testing.collector import Collector, refuse_inside_a_scope
from worker.testing.drainer import Drainer, Limits, apart
from worker.testing.faults import CrashPoint, Faults
from worker.testing.job_runner import JobRunner
from worker.testing.known_tasks import KnownTasks
from worker.testing.memory_broker import MemoryBroker
from worker.testing.records import EnqueuedJob, Run, Tally
from worker.testing.resources import Resources
from worker.testing.wanted import Wanted

P = ParamSpec("P")
R = TypeVar("R")

_LIMIT = 1000  # runs of one drain


class Jobs:
    """The jobs of one test: `worker.testing.jobs` makes it.

    ::

        await client.post("/orders/7")
        await jobs.assert_enqueued(ship, order_id=7)
        await jobs.drain()
    """

    def __init__(self, config: Config, tasks: Iterable[Task[..., Any]] = ()) -> None:
        clock = self._clock = Clock()
        self.broker = MemoryBroker(clock, name=config.queue, max_payload=config.max_payload)
        """The broker that the code under test uses."""
        self.resources: dict[str, Any] = Resources()
        """What tasks get by `Resource`, by name. The lifespan of the registry is not entered."""
        self._faults = Faults()
        self._tasks = KnownTasks(config)
        self._runner = JobRunner(config, self.broker, self.resources, self._faults)
        self._drainer = Drainer(self.broker, clock, Collector(config, self.broker), self._runner, self._tasks)
        self._inline_errors: list[BaseException] | None = None
        self.broker.after_commit = self._after_commit
        self.use(*tasks)

    def use(self, *tasks: Task[..., Any]) -> None:
        """Make tasks known that the registry does not list. Tasks that are passed to a method are known."""
        for task in tasks:
            self._tasks.use(task)

    # What is enqueued.

    async def enqueued(
        self,
        task: Task[..., Any] | None = None,
        *,
        queue: str | None = None,
        args: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> list[EnqueuedJob]:
        """The jobs that wait, the next one first. A job of a transaction that was not committed is not there.

        Args:
            task: only jobs of this task.
            queue: only jobs of this queue.
            args, arguments: only jobs with these arguments: see `worker.testing.matching.matches`. `args` is for
                parameters that have the name of one of these options.

        Raises:
            WorkerError: a scope is open here, or the task has no such parameter.
        """
        wanted = Wanted.of(task, queue, {**(args or {}), **arguments})
        return [job for job in await self._waiting(task) if wanted.is_met_by(job)]

    async def assert_enqueued(
        self,
        task: Task[..., Any],
        *,
        queue: str | None = None,
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        job_id: str | None = None,
        count: int | None = None,
        args: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> EnqueuedJob:
        """Assert that a job waits, and return it; the first one if there are several.

        Args:
            delay: seconds from its enqueueing until it is due.
            at: when it is due.
            job_id: its id.
            count: how many such jobs wait (default: at least one).
            queue, args, arguments: as for `enqueued`.

        Raises:
            AssertionError: there is no such job. It says which jobs there are.
        """
        wanted = Wanted.of(task, queue, {**(args or {}), **arguments}, delay=delay, at=at, job_id=job_id)
        waiting = await self._waiting(task)
        found = [job for job in waiting if wanted.is_met_by(job)]
        if not found or count not in (None, len(found)):
            raise AssertionError(self._what_is_there(wanted, waiting, found, count))
        return found[0]

    async def refute_enqueued(
        self,
        task: Task[..., Any] | None = None,
        *,
        queue: str | None = None,
        args: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        """Assert that no such job waits. The arguments are those of `enqueued`.

        Raises:
            AssertionError: such a job waits.
        """
        found = await self.enqueued(task, queue=queue, args=args, **arguments)
        if found:
            raise AssertionError("\n".join([f"{len(found)} such jobs wait:", *(f"  {job}" for job in found)]))

    # Running.

    async def perform(self, task: Task[P, R], *args: P.args, **kwargs: P.kwargs) -> Run[R]:
        """Run a task once as a job, without a queue, and return how the attempt ended.

        The arguments travel as JSON, the session is committed or rolled back, and errors become outcomes.

        Raises:
            TypeError, pydantic.ValidationError: as `Task.enqueue`.
        """
        return await self.using().perform(task, *args, **kwargs)

    def using(
        self, *, attempt: int = 1, previous: int | None = None, job_id: str | None = None, queue: str | None = None
    ) -> "Attempt":
        """Options for `perform`.

        Args:
            attempt: the number of the try, from 1.
            previous: the earlier starts of the job (default: one for each earlier try).
            job_id: the job's id (default: a random one).
            queue: the job's queue (default: that of the task).

        Raises:
            ValueError: `attempt` is less than 1, or `previous` less than the earlier tries.
        """
        before = attempt - 1 if previous is None else previous
        if attempt < 1 or before < attempt - 1:
            raise ValueError(f"attempt {attempt} has at least {max(attempt - 1, 0)} previous starts, from attempt 1 on")
        return Attempt(self, attempt - 1, before - (attempt - 1), job_id, queue)

    async def drain(
        self, queue: str | None = None, *, recursive: bool = True, raises: bool = True, limit: int = _LIMIT
    ) -> Tally:
        """Run the jobs that are due now, one after the other, in the order in which they are due.

        Args:
            queue: only jobs of this queue.
            recursive: also run the jobs that these jobs enqueue.
            raises: raise the error of a job that fails for good.
            limit: the most runs.

        Raises:
            BaseException: a job's own error, with `raises`.
            WorkerError: a scope is open here, or `limit` jobs have run and others are due.
        """
        tally = Tally()
        await self._drainer.drain(Limits(queue, raises, limit, recursive), tally)
        return tally

    async def advance(
        self,
        time: timedelta | float = 0.0,
        *,
        days: float = 0,
        hours: float = 0,
        minutes: float = 0,
        seconds: float = 0,
        queue: str | None = None,
        raises: bool = True,
        limit: int = _LIMIT,
    ) -> Tally:
        """Let time pass, and run what falls due meanwhile, each job at its time: delays, retries, cron slots.

        The clock of the queue moves. The clock that the code under test reads does not: freeze and move it with a
        library, if the code reads it.

        Args:
            time: seconds, besides the other units.
            queue, raises, limit: as for `drain`.
        """
        time = time if isinstance(time, timedelta) else timedelta(seconds=time)
        until = self._clock.after(time + timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds))
        tally = Tally()
        await self._drainer.advance(until, Limits(queue, raises, limit), tally)
        return tally

    async def redeliver(self, job: EnqueuedJob | Job[R]) -> Run[R]:
        """Run a job once more, as when Redis has lost its end. Effects in the database do not happen again.

        Raises:
            WorkerError: the test has not enqueued this job, or a scope is open here.
        """
        await self._drainer.waiting()
        return await self._drainer.run(self.broker.requeue(self._known(job)))

    @contextmanager
    def inline(self) -> Iterator[None]:
        """Run each job right after the COMMIT that has made it, in a block. Its error is raised at the block's end."""
        errors = self._inline_errors = []
        try:
            yield
        finally:
            self._inline_errors = None
        if errors:
            raise errors[0]

    # Faults.

    def crash(self, task: Task[..., Any], at: CrashPoint = "before_commit") -> AbstractContextManager[None]:
        """Let the worker of each job of a task die, in a block. The next `drain` delivers such a job again.

        Args:
            at: ``"start"``, ``"before_commit"`` or ``"after_commit"``.

        Raises:
            WorkerError: `at` is none of them.
        """
        self.use(task)
        return self._faults.crash(task, at)

    def fail(self, task: Task[..., Any], error: BaseException) -> AbstractContextManager[None]:
        """Let each attempt of a task raise `error` in place of its body, in a block."""
        self.use(task)
        return self._faults.fail(task, error)

    def pause(self, queue: str | None = None) -> AbstractContextManager[None]:
        """Let no job of a queue run, in a block (default: the default queue). Enqueueing goes on."""
        return self.broker.pause(queue or self.broker.name)

    async def run_new(self, new: NewJob, attempt: "Attempt") -> Run[Any]:
        """Run a job that is in no queue."""
        return await self._drainer.run(self.broker.unqueued(new, attempt.tries, attempt.crashes), is_recorded=False)

    def close(self) -> None:
        """Start no more plain functions."""
        self._runner.close()

    async def _waiting(self, task: Task[..., Any] | None) -> list[EnqueuedJob]:
        if task is not None:
            self.use(task)
        return await self._drainer.waiting()

    async def _after_commit(self) -> None:
        """Run what a COMMIT has published, in a block of `inline`."""
        if self._inline_errors is None or self._drainer.is_running:
            return
        errors = self._inline_errors
        try:
            await apart(self.drain())
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - it is the job's, not the caller's; raised at the block's end
            errors.append(error)

    def _known(self, job: EnqueuedJob | Job[Any]) -> NewJob:
        job_id = job.id if isinstance(job, EnqueuedJob) else job.job_id
        for (known_id, enqueued_at), new in reversed(self.broker.known.items()):
            if known_id == job_id and job.enqueued_at in (None, from_milliseconds(enqueued_at)):
                return new
        raise WorkerError(f"job {job_id} was not enqueued in this test, or its transaction was not committed")

    def _what_is_there(
        self, wanted: "Wanted", waiting: list[EnqueuedJob], found: list[EnqueuedJob], count: int | None
    ) -> str:
        number = "no job waits"
        if found:
            number = plural(len(found), "job waits", "jobs wait") + f", and not {count},"
        lines = [f"{number} with {wanted}"]
        lines += ["these jobs wait:" if waiting else "no jobs wait at all", *(f"  {job}" for job in waiting)]
        if uncommitted := len(self.broker.expected):
            number = plural(uncommitted, "job was", "jobs were")
            lines.append(f"{number} enqueued in a transaction that is not committed, or was rolled back")
        return "\n".join(lines)


@dataclass(frozen=True)
class Attempt:
    """`Jobs.perform`, with options. `Jobs.using` makes it."""

    jobs: Jobs
    tries: int
    crashes: int
    job_id: str | None
    queue: str | None

    async def perform(self, task: Task[P, R], *args: P.args, **kwargs: P.kwargs) -> Run[R]:
        """As `Jobs.perform`."""
        refuse_inside_a_scope()
        self.jobs.use(task)
        payload = task.signature.validate(args, kwargs)
        enqueued_at = now_ms() if self.job_id is None else enqueue_time(self.job_id)
        raw = Envelope(task.name, enqueued_at).around(payload)
        queue = self.queue or task.options.queue or self.jobs.broker.name
        return await self.jobs.run_new(NewJob(self.job_id or new_job_id(), raw, task.name, queue, enqueued_at), self)
