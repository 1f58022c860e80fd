"""Enqueueing in the transaction that is open.

1. Rows are collected and written in one statement before its COMMIT; then one round trip publishes them. They go with
   the savepoint that they were made in. Redis may be away: the relay publishes them later.
2. A job with an id of its caller's is written at once, as the caller is to know whether the id was free.
3. Where the transaction is part of one that somebody else ends, a test's say, nothing is published: what is never
   committed runs nowhere, and what is committed after all the relay publishes.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from db import Database, default_database
from db.scope import Scope
from db.session.callbacks import Callback
from db.session.classes import joins_transaction
from worker.broker.broker import Broker, default_broker
from worker.broker.errors import RedisError
from worker.errors import EnqueueError
from worker.ledger import State
from worker.ledger.default import default_ledger
from worker.new_job import NewJob

logger = logging.getLogger("worker")


@dataclass(slots=True, eq=False)
class Transaction:
    """The transaction that the jobs of one call were enqueued in."""

    scope: Scope
    on_commit: Callback | None = None
    is_joined: bool = False
    """Whether it is part of one that somebody else ends, a test's say."""

    @property
    def is_committed(self) -> bool:
        return self.on_commit is not None and self.on_commit.is_committed

    @property
    def is_open(self) -> bool:
        """Whether it is to be committed yet."""
        return self.scope.is_open and not self.is_committed


class Batch(NamedTuple):
    """The jobs of one call, and the transaction that they exist with."""

    transaction: Transaction
    jobs: list[NewJob]


async def enqueue_in(transaction: Transaction, jobs: list[NewJob], broker: Broker, *, is_named: bool) -> list[bool]:
    """Let the jobs of one call exist if and only if the default database's transaction in the scope commits.

    Args:
        is_named: whether their id is the caller's own, and so may be taken.

    Returns:
        Of each, whether its id was free.

    Raises:
        WorkerError: Redis cannot serve the queue under its name, so that nobody could publish the jobs.
        EnqueueError: an earlier job has the id and the enqueue time.
    """
    if not jobs:
        return []
    broker.connections.check_name(jobs[0].queue)
    scope = transaction.scope
    database = _database_of(scope)
    if is_named:
        session = await scope.session(database)
        transaction.is_joined = joins_transaction(session)
        are_free = [await _reserve(session, job, broker) for job in jobs]
    else:
        are_free = [True] * len(jobs)
        scope.before_commit_batch(_add, [Batch(transaction, jobs)], database)
    free = [job for job, is_free in zip(jobs, are_free, strict=True) if is_free]
    if free:
        transaction.on_commit = scope.on_commit_batch(_publish, [Batch(transaction, free)], database)
    return are_free


def _database_of(scope: Scope) -> Database[Any]:
    """The default database, through the driver by which the scope uses it: through another one, a row would be in a
    transaction of its own. Where it uses both, that of the transaction that is open, else of the later session."""
    default = default_database()
    used = [unit for unit in scope.scoped_sessions if unit.database.is_same_as(default)]
    begun = [unit for unit in used if unit.session.in_transaction()]
    return next((unit.database for unit in reversed(begun or used)), default)


async def _reserve(session: Any, job: NewJob, broker: Broker) -> bool:
    """Take the job's id: whether nobody has it in the ledger, nor in the queue."""
    if await _is_queued(job, broker):
        return False
    ledger = default_ledger()
    if await ledger.reserve(session, job):
        return True
    stored = await ledger.stored_result(session, job)
    if stored is not None and stored.state is not State.PENDING:
        raise EnqueueError(
            f"job {job.id}: an earlier job has this id and this enqueue time, {job.enqueued_at} ms, so that the "
            "ledger would take both for one. The clock stands still or was set back: give another id, or set the clock"
        )
    return False


async def _is_queued(job: NewJob, broker: Broker) -> bool:
    """Whether a job of this id waits, runs, or has a kept result. A Redis that is away keeps nobody from enqueueing."""
    try:
        return (await broker.status(job.queue, job.id)).holds_id
    except (RedisError, OSError) as error:
        logger.warning("Redis does not say whether the id %s is free: %s", job.id, error)
        return False


async def _add(session: Any, batches: list[Batch]) -> None:
    if joins_transaction(session):
        for batch in batches:
            batch.transaction.is_joined = True
    await default_ledger().add(session, _jobs(batches))


async def _publish(batches: list[Batch]) -> None:
    """Send what was committed. That Redis does not take it is not the caller's error: the jobs exist."""
    if joined := _jobs(batch for batch in batches if batch.transaction.is_joined):
        logger.info("%d jobs are in a transaction that goes on: not published", len(joined))
    committed = _jobs(batch for batch in batches if not batch.transaction.is_joined)
    try:
        await default_broker().publish(committed)
    except (RedisError, OSError) as error:
        logger.warning("Redis did not take %d committed jobs, which the relay will publish: %s", len(committed), error)


def _jobs(batches: Iterable[Batch]) -> list[NewJob]:
    return [job for batch in batches for job in batch.jobs]
