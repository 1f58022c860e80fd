"""``Producer`` and its actions: transactions that commit or roll back, in whole or in part, and direct enqueueing.

The producer logs each action before and after. Each transaction inserts a marker row with the keys of the jobs that it
enqueues. The row exists if and only if the transaction was committed, whatever its producer was told.
"""

import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

import db
from tests.chaos import tasks
from tests.chaos.logs import ActionLog, Intent, Outcome, PlannedJob
from tests.chaos.tasks import INSERT_MARKER
from worker import Job, Task

Errors = tuple[type[Exception], ...]

DATABASE_ERRORS: Errors = (SQLAlchemyError, db.DbError, OSError)
REDIS_ERRORS: Errors = (RedisError, OSError)

_SHARED_IDS = 4  # few, so that an id is often taken, or has just become free
_BULK_SIZE = 30
_LONG_GIL_HOLD = 5.0  # seconds: more than two leases
_LONG_GIL_HOLD_SHARE = 0.03  # of those jobs; each stops its whole worker, so more would leave too little other work


class AbortError(Exception):
    """Raised by a producer to roll back."""


@dataclass
class Action:
    """One action in progress."""

    name: str
    job_ids: dict[str, str] = field(default_factory=dict)
    outcome: Outcome = Outcome.UNKNOWN

    async def enqueue(self, jobs: Iterable[PlannedJob]) -> list[PlannedJob]:
        """Enqueue the jobs one after another; return those that are new, whose id was free."""
        return [job for job in jobs if self._remember(job, await _bind_options(job).enqueue(**_payload(job)))]

    async def enqueue_many(self, jobs: list[PlannedJob]) -> list[PlannedJob]:
        """Enqueue jobs of one task in one call; return those that are new."""
        enqueued_jobs = await _bind_options(jobs[0]).enqueue_many([_payload(job) for job in jobs])
        return [job for job, enqueued in zip(jobs, enqueued_jobs, strict=True) if self._remember(job, enqueued)]

    async def insert_marker(self, jobs: Iterable[PlannedJob]) -> None:
        """Insert the marker row, with the jobs that the open transaction has enqueued."""
        session: Any = await db.session()
        await session.execute(text(INSERT_MARKER), {"transaction": self.name, "keys": [job.key for job in jobs]})

    def _remember(self, job: PlannedJob, enqueued: Job[Any]) -> bool:
        if enqueued.is_new:
            self.job_ids[job.key] = enqueued.job_id
        return enqueued.is_new


class Producer:
    """Performs random actions and logs them.

    Args:
        name: unique to this instance of the process.
        report_error: called with each error that an outage of a server explains.
    """

    def __init__(self, name: str, rng: random.Random, log: ActionLog, report_error: Callable[[str], None]) -> None:
        self.rng = rng
        self._name = name
        self._log = log
        self._report_error = report_error
        self._job_count = self._action_count = 0
        self._last_outcome = Outcome.UNKNOWN

    async def perform_action(self) -> Outcome:
        """Perform a random action and return its outcome."""
        perform = self.rng.choices([action for action, _ in ACTIONS], [weight for _, weight in ACTIONS])[0]
        await perform(self)
        return self._last_outcome

    @asynccontextmanager
    async def logged(self, jobs: Iterable[PlannedJob], expected: Errors = DATABASE_ERRORS) -> AsyncIterator[Action]:
        """Log the jobs before the block and its outcome after it. Suppress expected errors."""
        self._action_count += 1
        action = Action(f"{self._name}:{self._action_count}")
        self._log.append_start(action.name, jobs)
        try:
            yield action
        except AbortError:
            action.outcome = Outcome.ABORTED
        except expected as error:
            self._report_error(f"{action.name}: {type(error).__name__}: {error}")
        else:
            action.outcome = Outcome.OK
        self._log.append_end(action.name, action.outcome, action.job_ids)
        self._last_outcome = action.outcome

    def plan_jobs(self, intent: Intent) -> list[PlannedJob]:
        """Plan one to three jobs of random tasks."""
        return [self._plan_job(intent, self._draw_task()) for _ in range(self.rng.randint(1, 3))]

    def plan_inserts(self, intent: Intent, count: int) -> list[PlannedJob]:
        """Plan jobs of one task."""
        return [PlannedJob(self._next_key(), tasks.insert.name, intent, {}) for _ in range(count)]

    def plan_shared_id(self) -> PlannedJob:
        """Plan a job with an id that the other producer uses, too."""
        job_id = f"shared-{self.rng.randrange(_SHARED_IDS)}"
        return PlannedJob(self._next_key(), tasks.insert.name, Intent.COMMIT, {}, job_id=job_id)

    def _plan_job(self, intent: Intent, task: Task[..., Any]) -> PlannedJob:
        delay = self.rng.uniform(0, 3) if self.rng.random() < 0.2 else 0.0
        arguments = _ARGUMENTS[task.name](self.rng) if task.name in _ARGUMENTS else {}
        return PlannedJob(self._next_key(), task.name, intent, arguments, delay=delay)

    def _draw_task(self) -> Task[..., Any]:
        return self.rng.choices([task for task, _ in _TASKS], [weight for _, weight in _TASKS])[0]

    def _next_key(self) -> str:
        self._job_count += 1
        return f"{self._name}-{self._job_count}"


async def _commit(producer: Producer) -> None:
    jobs = producer.plan_jobs(Intent.COMMIT)
    async with producer.logged(jobs) as action, db.scope():
        await action.insert_marker(await action.enqueue(jobs))


async def _commit_bulk(producer: Producer) -> None:
    jobs = producer.plan_inserts(Intent.COMMIT, _BULK_SIZE)
    async with producer.logged(jobs) as action, db.scope():
        await action.insert_marker(await action.enqueue_many(jobs))


async def _commit_shared_id(producer: Producer) -> None:
    jobs = [producer.plan_shared_id()]
    async with producer.logged(jobs) as action, db.scope():
        await action.insert_marker(await action.enqueue(jobs))


async def _roll_back(producer: Producer) -> None:
    jobs = producer.plan_jobs(Intent.ROLLBACK)
    async with producer.logged(jobs) as action, db.scope():
        await action.insert_marker(await action.enqueue(jobs))
        raise AbortError


async def _roll_back_savepoint(producer: Producer) -> None:
    before, lost, kept = (
        producer.plan_jobs(Intent.COMMIT),
        producer.plan_jobs(Intent.SAVEPOINT_ROLLBACK),
        producer.plan_jobs(Intent.COMMIT),
    )
    async with producer.logged([*before, *lost, *kept]) as action, db.scope():
        session: Any = await db.session()
        await action.enqueue(before)
        with contextlib.suppress(AbortError):
            async with session.begin_nested():
                await action.enqueue(lost)
                raise AbortError
        async with db.atomic(current="savepoint"):
            await action.enqueue(kept)
        await action.insert_marker([*before, *kept])


async def _commit_early(producer: Producer) -> None:
    """Commit the first jobs in the middle of the scope, then commit or roll back the second ones."""
    aborts = producer.rng.random() < 0.5
    first, second = producer.plan_jobs(Intent.COMMIT), producer.plan_jobs(Intent.ROLLBACK if aborts else Intent.COMMIT)
    async with producer.logged(second) as later, db.scope():
        async with producer.logged(first) as early:
            await early.insert_marker(await early.enqueue(first))
            await db.commit()
        if early.outcome is not Outcome.OK:
            raise AbortError
        await later.insert_marker(await later.enqueue(second))
        if aborts:
            raise AbortError


async def _enqueue_directly(producer: Producer) -> None:
    jobs = producer.plan_jobs(Intent.DIRECT)
    async with producer.logged(jobs, REDIS_ERRORS) as action:
        await action.enqueue(jobs)


async def _enqueue_directly_in_transaction(producer: Producer) -> None:
    """Enqueue directly while a transaction is open, which then commits or rolls back."""
    aborts = producer.rng.random() < 0.5
    jobs = producer.plan_jobs(Intent.DIRECT)
    async with producer.logged(jobs, DATABASE_ERRORS + REDIS_ERRORS) as action, db.scope():
        await action.enqueue(jobs)
        await action.insert_marker([])
        if aborts:
            raise AbortError


def _bind_options(job: PlannedJob) -> Any:
    task = next(task for task, _ in _TASKS if task.name == job.task)
    return task.using(delay=job.delay, job_id=job.job_id, transactional=False if job.intent is Intent.DIRECT else None)


def _payload(job: PlannedJob) -> dict[str, Any]:
    size = job.arguments.get("size")
    filler = {} if size is None else {"filler": "x" * size}  # kept out of the action log
    return {"key": job.key, **job.arguments, **filler}


ACTIONS: tuple[tuple[Callable[[Producer], Awaitable[None]], int], ...] = (
    (_commit, 6),
    (_commit_bulk, 1),
    (_commit_shared_id, 2),
    (_roll_back, 3),
    (_roll_back_savepoint, 3),
    (_commit_early, 2),
    (_enqueue_directly, 3),
    (_enqueue_directly_in_transaction, 1),
)
"""All actions, with their weights: how often each is performed in relation to the others."""

_TASKS: tuple[tuple[Task[..., Any], int], ...] = (
    (tasks.insert, 6),
    (tasks.insert_in_thread, 2),
    (tasks.insert_slowly, 1),
    (tasks.insert_after_retries, 1),
    (tasks.fail, 1),
    (tasks.fan_out, 1),
    (tasks.log_run, 1),
    (tasks.insert_by_copy, 1),
    (tasks.insert_in_repeatable_read, 1),
    (tasks.log_run_read_only, 1),
    (tasks.insert_large_payload, 1),
    (tasks.hold_gil, 1),
    (tasks.terminate_forked_child, 1),
    (tasks.exit_in_child_task, 1),
    (tasks.insert_in_chunk, 4),
)

_ARGUMENTS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "insert_slowly": lambda rng: {"seconds": rng.choice([0.3, 1.0, 3.0])},
    "hold_gil": lambda rng: {"seconds": 0.05 if rng.random() > _LONG_GIL_HOLD_SHARE else _LONG_GIL_HOLD},
    "insert_after_retries": lambda rng: {"failures": rng.randint(1, 3)},
    "insert_in_repeatable_read": lambda rng: {"seconds": rng.choice([0.3, 4.0])},
    "insert_by_copy": lambda rng: {"fails": rng.random() < 0.3},
    "insert_in_chunk": lambda rng: {"fails": rng.random() < 0.1},
    "exit_in_child_task": lambda rng: {"fails": rng.random() < 0.3},
    "fan_out": lambda rng: {"children": rng.randint(1, 4), "fails": rng.random() < 0.3},
    "insert_large_payload": lambda rng: {"size": rng.choice([10_000, 10_000, 1_000_000]), "fails": rng.random() < 0.5},
}
