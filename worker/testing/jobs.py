"""``Jobs``: what a test asks and lets happen. Everything is as in a worker, but the queue is in memory."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from secrets import token_hex
from typing import Any, NoReturn, ParamSpec, TypeVar

from worker.aio.background import Background
from worker.broker.records import now_ms
from worker.client.enqueue_time import enqueue_time
from worker.config import Config
from worker.context import from_milliseconds
from worker.engine.cron_series import CronSeries
from worker.engine.execution import Execution
from worker.engine.outcome import Outcome, OutcomeKind
from worker.errors import RegistryError, WorkerError
from worker.job import Job
from worker.message import Envelope, Message
from worker.new_job import NewJob
from worker.registry import load
from worker.task import Task
from worker.testing.clock import Clock
from worker.testing.collector import Collector, refuse_inside_a_scope
from worker.testing.faults import CrashPoint, Faults
from worker.testing.job_runner import JobRunner
from worker.testing.memory_broker import MemoryBroker, QueuedJob
from worker.testing.records import EnqueuedJob, Run, Tally
from worker.testing.wanted import Wanted

P = ParamSpec("P")
R = TypeVar("R")

_LIMIT = 1000  # runs of one drain
_ENDS = frozenset({OutcomeKind.FAILED, OutcomeKind.EXPIRED})


class Jobs:
    """The jobs of one test: `worker.testing.jobs` makes it.

    ::

        await client.post("/orders/7")
        await jobs.assert_enqueued(ship, order_id=7)
        await jobs.drain()
    """

    def __init__(self, config: Config, tasks: Iterable[Task[..., Any]] = ()) -> None:
        self._config = config
        self._clock = Clock()
        self.broker = MemoryBroker(self._clock, name=config.queue, max_payload=config.max_payload)
        """The broker that the code under test uses."""
        self.resources: dict[str, Any] = _Resources()
        """What tasks get by `Resource`, by name. The lifespan of the registry is not entered."""
        self._faults = Faults()
        self._collector = Collector(config, self.broker)
        self._runner = JobRunner(config, self.broker, self.resources, self._faults)
        self._own_tasks: dict[str, Task[..., Any]] = {}
        self._registered: Mapping[str, Task[..., Any]] | None = None
        self._inline_errors: list[BaseException] | None = None
        self._is_draining = False
        self.broker.after_commit = self._after_commit
        self.broker.run_aborted = self._run_aborted
        self.use(*tasks)

    def use(self, *tasks: Task[..., Any]) -> None:
        """Make tasks known that the registry does not list. Tasks that are passed to a method are known."""
        for task in tasks:
            task.check()
            self._own_tasks[task.name] = task

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
        await self._drain_into(tally, queue, recursive=recursive, raises=raises, limit=limit)
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
        series = [each for task in self._tasks.values() for each in CronSeries.of(task)]
        tally = Tally()
        while True:
            await self._drain_into(tally, queue, recursive=True, raises=raises, limit=limit)
            now = self._clock.moment
            moments = [job.due for job in await self._waiting() if job.queue not in self.broker.paused]
            moments = [moment for moment in moments if moment > now]
            slots = [(each.next_after(now), each) for each in series]
            moment = min([*moments, *(at for at, _ in slots)], default=until)
            if moment > until:
                self._clock.move_to(until)
                return tally
            self._clock.move_to(moment)
            for at, each in slots:
                if at == moment:
                    self._add_slot(each, at)
            if moment == until:
                await self._drain_into(tally, queue, recursive=True, raises=raises, limit=limit)
                return tally

    async def redeliver(self, job: EnqueuedJob | Job[R]) -> Run[R]:
        """Run a job once more, as when Redis has lost its end. Effects in the database do not happen again.

        Raises:
            WorkerError: the test has not enqueued this job, or a scope is open here.
        """
        await self._collect()
        run, _ = await self._run(self.broker.requeue(self._known(job)))
        return run

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

    @contextmanager
    def pause(self, queue: str | None = None) -> Iterator[None]:
        """Let no job of a queue run, in a block (default: the default queue). Enqueueing goes on."""
        name = queue or self.broker.name
        self.broker.paused.add(name)
        try:
            yield
        finally:
            self.broker.paused.discard(name)

    async def run_new(self, new: NewJob, attempt: "Attempt") -> Run[Any]:
        """Run a job that is in no queue."""
        run, _ = await self._run(self.broker.unqueued(new, attempt.tries, attempt.crashes), is_recorded=False)
        return run

    def close(self) -> None:
        """Start no more plain functions."""
        self._runner.close()

    # How it works.

    async def _waiting(self, task: Task[..., Any] | None = None) -> list[EnqueuedJob]:
        if task is not None:
            self.use(task)
        await self._collect()
        return [self._described(job) for job in self.broker.waiting()]

    async def _collect(self) -> None:
        await self._collector.collect()

    async def _drain_into(self, tally: Tally, queue: str | None, *, recursive: bool, raises: bool, limit: int) -> None:
        refuse_inside_a_scope()
        await self._collect()
        self.broker.end_leases()
        first = None if recursive else {job.key for job in self.broker.waiting(queue)}
        while (job := self.broker.next_due(queue)) is not None:
            if first is not None and job.key not in first:
                return
            if not job.is_committed:
                raise WorkerError(
                    f"{self._described(job)} was enqueued in a session whose transaction this test holds open, so no "
                    "other session sees its row: run it with savepoint_database, or commit, or use perform()"
                )
            if len(tally) >= limit:
                raise WorkerError(
                    f"{limit} jobs have run, and others are due: {self._described(job)} is the next. If that is no "
                    f"endless chain, pass limit={10 * limit}"
                )
            run, outcome = await self._run(job)
            tally.runs.append(run)
            if raises and outcome is not None and outcome.kind in _ENDS and outcome.error is not None:
                raise outcome.error
            await self._collect()

    async def _run(self, job: QueuedJob, *, is_recorded: bool = True) -> tuple[Run[Any], Outcome | None]:
        described = self._described(job)
        if self._faults.crashes.get(job.new.task) == "start":
            self.broker.claim_job(job)
            self.broker.lose_worker(job)
            return Run(described, "crashed"), None
        was_draining, self._is_draining = self._is_draining, True
        try:
            execution, outcome = await self._runner.run(
                job, self._tasks, self._collector.ledger, is_recorded=is_recorded
            )
        finally:
            self._is_draining = was_draining
        return _run_of(described, execution, outcome), outcome

    async def _run_aborted(self, job: QueuedJob) -> None:
        background = Background()
        try:
            await background.start(self._run(job))
        finally:
            await background.close()

    async def _after_commit(self) -> None:
        """Run what a COMMIT has published, in a block of `inline`."""
        if self._inline_errors is None or self._is_draining:
            return
        errors, background = self._inline_errors, Background()
        try:
            await background.start(self.drain())
        except BaseException as error:  # noqa: BLE001 - it is the job's, not the caller's; raised at the block's end
            errors.append(error)
        finally:
            await background.close()

    def _add_slot(self, series: CronSeries, moment: datetime) -> None:
        slot = series.slot(moment, runs=True)
        queue = series.task.options.queue or self.broker.name
        new = NewJob(slot.job_id, slot.payload, slot.task, queue, slot.moment, due=slot.moment)
        self.broker.add_slot(new)

    def _described(self, job: QueuedJob) -> EnqueuedJob:
        new = job.new
        message = Message.decode(new.id, new.payload, accept_pickle=True)
        task = self._tasks.get(new.task)
        return EnqueuedJob(
            id=new.id,
            task=new.task,
            args=dict(message.kwargs) if task is None else _arguments(task, message),
            queue=new.queue,
            due=from_milliseconds(job.due),
            delay=max(job.due - job.since, 0) / 1000,
            enqueued_at=from_milliseconds(new.enqueued_at),
            attempt=job.tries + 1,
        )

    def _known(self, job: EnqueuedJob | Job[Any]) -> NewJob:
        job_id = job.id if isinstance(job, EnqueuedJob) else job.job_id
        for (known_id, enqueued_at), new in reversed(self.broker.known.items()):
            if known_id == job_id and job.enqueued_at in (None, from_milliseconds(enqueued_at)):
                return new
        raise WorkerError(f"job {job_id} was not enqueued in this test, or its transaction was not committed")

    @property
    def _tasks(self) -> Mapping[str, Task[..., Any]]:
        """The tasks of the registry, if the project has one, and those that the test has named."""
        if self._registered is None:
            self._registered = self._from_registry()
        return {**self._registered, **self._own_tasks}

    def _from_registry(self) -> Mapping[str, Task[..., Any]]:
        try:
            return load(self._config.registry).tasks
        except RegistryError:
            if self._own_tasks:
                return {}
            raise

    def _what_is_there(
        self, wanted: "Wanted", waiting: list[EnqueuedJob], found: list[EnqueuedJob], count: int | None
    ) -> str:
        number = "no job waits" if not found else f"{len(found)} jobs wait, and not {count},"
        lines = [f"{number} with {wanted}"]
        lines += ["these jobs wait:" if waiting else "no jobs wait at all", *(f"  {job}" for job in waiting)]
        if uncommitted := len(self.broker.expected):
            lines.append(f"{uncommitted} jobs were enqueued in a transaction that is not committed, or was rolled back")
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
        return await self.jobs.run_new(NewJob(self.job_id or token_hex(16), raw, task.name, queue, enqueued_at), self)


class _Resources(dict[str, Any]):
    """Resources by name."""

    def __missing__(self, name: str) -> NoReturn:
        raise WorkerError(f"a task asks for the resource {name!r}: set jobs.resources[{name!r}] in the test")


def _run_of(job: EnqueuedJob, execution: Execution, outcome: Outcome | None) -> Run[Any]:
    if outcome is None:
        return Run(job, "crashed")
    has_value = outcome.kind in (OutcomeKind.COMPLETED, OutcomeKind.DUPLICATE)
    runs_again = outcome.kind in (OutcomeKind.RETRIED, OutcomeKind.POSTPONED)
    return Run(
        job,
        outcome.kind.value,
        value=execution.task.signature.restore_result(outcome.result) if has_value else None,
        error=outcome.error,
        retry_in=outcome.delay if runs_again else None,
    )


def _arguments(task: Task[..., Any], message: Message) -> dict[str, Any]:
    """The arguments that the caller gave, in the types that the task gets. As JSON has them if they do not fit."""
    try:
        return task.signature.restore(message.args, message.kwargs)
    except Exception:  # noqa: BLE001 - a validator is the project's own code; the run will say what is wrong
        return dict(message.kwargs)
