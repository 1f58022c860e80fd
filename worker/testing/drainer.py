"""``Drainer``: run the jobs of a test that are due, one after the other, and let time pass.

collect what is committed -> claim the next due job -> run it -> collect what it has enqueued
"""

from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from db.text.plural import plural
from worker.aio.background import Background
from worker.context import from_milliseconds
from worker.engine.cron_series import CronSeries
from worker.engine.execution import Execution
from worker.engine.outcome import Outcome, OutcomeKind
from worker.errors import WorkerError
from worker.message import Message
from worker.new_job import NewJob
from worker.task import Task
from worker.testing.clock import Clock
from worker.testing.collector import Collector, refuse_inside_a_scope
from worker.testing.job_runner import JobRunner
from worker.testing.known_tasks import KnownTasks
from worker.testing.memory_broker import MemoryBroker, QueuedJob
from worker.testing.records import EnqueuedJob, Run, Tally

_ENDED = (OutcomeKind.FAILED.value, OutcomeKind.EXPIRED.value)
"""The outcomes of jobs that have failed for good."""


@dataclass(frozen=True)
class Limits:
    """How far a drain goes."""

    queue: str | None
    """Only jobs of this queue. None: of all."""
    raises: bool
    """Whether the error of a job that fails for good is raised."""
    runs: int
    """The most runs."""
    recursive: bool = True
    """Whether the jobs that these jobs enqueue run, too."""


class Drainer:
    """Runs the jobs of a test."""

    def __init__(
        self, broker: MemoryBroker, clock: Clock, collector: Collector, runner: JobRunner, tasks: KnownTasks
    ) -> None:
        self._broker = broker
        self._clock = clock
        self._collector = collector
        self._runner = runner
        self._tasks = tasks
        self.is_running = False
        """Whether a job runs now."""
        broker.run_aborted = self._run_aborted

    async def waiting(self) -> list[EnqueuedJob]:
        """The jobs that wait, the next one first."""
        await self._collector.collect()
        return [self.described(job) for job in self._broker.waiting()]

    async def drain(self, limits: Limits, tally: Tally) -> None:
        """Run what is due, and add the runs to `tally`."""
        refuse_inside_a_scope()
        await self._collector.collect()
        self._broker.end_leases()
        first = None if limits.recursive else {job.key for job in self._broker.waiting(limits.queue)}
        while (job := self._broker.next_due(limits.queue, of=first)) is not None:
            self._refuse(job, limits, tally)
            run = await self.run(job)
            tally.runs.append(run)
            if limits.raises and run.outcome in _ENDED and run.error is not None:
                raise run.error
            await self._collector.collect()

    async def advance(self, until: datetime, limits: Limits, tally: Tally) -> None:
        """Let time pass until a moment, and run each job and each cron slot at its time."""
        series = [each for task in self._tasks.by_name.values() for each in CronSeries.of(task)]
        while True:
            await self.drain(limits, tally)
            now = self._clock.moment
            later = [job.due for job in await self.waiting() if job.due > now and job.queue not in self._broker.paused]
            slots = [(each.next_after(now), each) for each in series]
            moment = min([*later, *(at for at, _ in slots)], default=None)
            if moment is None or moment > until:
                self._clock.move_to(until)
                return
            self._clock.move_to(moment)
            for at, each in slots:
                if at == moment:
                    self._add_slot(each, at)

    async def run(self, job: QueuedJob, *, is_recorded: bool = True) -> Run[Any]:
        """Run a job once.

        Args:
            is_recorded: whether the queue and the ledger get to know the outcome.
        """
        described, was_running = self.described(job), self.is_running
        self.is_running = True
        try:
            ended = await self._runner.run(job, self._tasks, self._collector.ledger, is_recorded=is_recorded)
        finally:
            self.is_running = was_running
        return Run(described, "crashed") if ended is None else _run_of(described, *ended)

    def described(self, job: QueuedJob) -> EnqueuedJob:
        """What a test gets to see of a job."""
        new = job.new
        message = Message.decode(new.id, new.payload, accept_pickle=True)
        return EnqueuedJob(
            id=new.id,
            task=new.task,
            args=_arguments(self._tasks.by_name.get(new.task), message),
            queue=new.queue,
            due=from_milliseconds(job.due),
            delay=max(job.due - job.since, 0) / 1000,
            enqueued_at=from_milliseconds(new.enqueued_at),
            attempt=job.tries + 1,
        )

    def _refuse(self, job: QueuedJob, limits: Limits, tally: Tally) -> None:
        if not job.is_committed:
            raise WorkerError(
                f"{self.described(job)} was enqueued in a session whose transaction this test holds open, so no "
                "other session sees its row: run it with savepoint_database, or commit, or use perform()"
            )
        if len(tally) >= limits.runs:
            raise WorkerError(
                f"{plural(limits.runs, 'job has run', 'jobs have run')}, and others are due: "
                f"{self.described(job)} is the next. If that is no endless chain, pass limit={10 * limits.runs}"
            )

    async def _run_aborted(self, job: QueuedJob) -> None:
        await apart(self.run(job))

    def _add_slot(self, series: CronSeries, moment: datetime) -> None:
        slot = series.slot(moment, runs=True)
        queue = series.task.options.queue or self._broker.name
        self._broker.add_slot(NewJob(slot.job_id, slot.payload, slot.task, queue, slot.moment, due=slot.moment))


async def apart(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Run a coroutine without the caller's context: a worker is part of no request, and of no scope."""
    background = Background()
    try:
        await background.start(coroutine)
    finally:
        await background.close()


def _run_of(job: EnqueuedJob, execution: Execution, outcome: Outcome) -> Run[Any]:
    has_value = outcome.kind in (OutcomeKind.COMPLETED, OutcomeKind.DUPLICATE)
    runs_again = outcome.kind in (OutcomeKind.RETRIED, OutcomeKind.POSTPONED)
    return Run(
        job,
        outcome.kind.value,
        value=execution.task.signature.restore_result(outcome.result) if has_value else None,
        error=outcome.error,
        retry_in=outcome.delay if runs_again else None,
    )


def _arguments(task: Task[..., Any] | None, message: Message) -> Mapping[str, Any]:
    """The arguments that the caller gave, in the types that the task gets. As JSON has them if they do not fit."""
    if task is not None:
        try:
            return task.signature.restore(message.args, message.kwargs)
        except Exception:  # noqa: BLE001, S110 - a validator is the project's code; the run will say what is wrong
            pass
    return dict(message.kwargs)
