"""Enqueueing in the open transaction.

1. Rows are collected, and written in one statement before the COMMIT; on asyncpg a few go in one message with it. After
   it one round trip publishes the jobs. Rows belong to the savepoint in which they were enqueued. If Redis is away, the
   relay publishes the jobs later.
2. A job with an id from its caller is written at once, as the caller gets to know whether the id was free.
3. If the transaction is part of another one, for example a test's, nothing is published. If that one is committed after
   all, the relay publishes the jobs.
"""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol

from db import Database, default_database
from db.scope import Scope
from db.session.callbacks import Callback
from db.session.classes import joins_transaction
from db.text.plural import plural
from worker.broker import errors as redis_errors
from worker.broker.broker import Broker, default_broker
from worker.client.enqueued import count_enqueued
from worker.errors import EnqueueError
from worker.ledger import State, StoredResult
from worker.ledger.default import default_ledger
from worker.new_job import NewJob

logger = logging.getLogger("worker")

_REQUIRE_SCOPE = "WORKER_REQUIRE_SCOPE"


class EnclosingTransaction(Protocol):
    """The transaction that the jobs of one call were enqueued in, for their handles."""

    is_joined: bool
    """Whether it is known to be part of another transaction, for example a test's."""

    @property
    def is_committed(self) -> bool: ...

    @property
    def is_open(self) -> bool:
        """Whether it can still be committed."""

    @property
    def way_to_commit(self) -> str:
        """For an error message: what has to be committed, and how."""


@dataclass(slots=True, eq=False)
class Transaction:
    """The transaction of a scope."""

    scope: Scope
    on_commit: Callback | None = None
    is_joined: bool = False
    """Whether it is part of another transaction, for example a test's."""

    @property
    def is_committed(self) -> bool:
        return self.on_commit is not None and self.on_commit.is_committed

    @property
    def is_open(self) -> bool:
        """Whether it can still be committed."""
        return self.scope.is_open and not self.is_committed

    @property
    def way_to_commit(self) -> str:
        return "its scope has committed: leave the scope first, or 'await db.commit()'"


class Batch(NamedTuple):
    """The jobs of one call, and the transaction that they belong to."""

    transaction: Transaction
    jobs: list[NewJob]


async def enqueue_in(transaction: Transaction, jobs: list[NewJob], broker: Broker, *, is_named: bool) -> list[bool]:
    """Enqueue the jobs of one call, so that they exist if and only if the scope's default database commits.

    Args:
        is_named: whether the caller has given the ids, so that they may be taken.

    Returns:
        For each job, whether its id was free.

    Raises:
        WorkerError: Redis cannot serve a queue of this name, so the jobs could not be published.
        EnqueueError: an earlier job has the same id and enqueue time.
    """
    if not jobs:
        return []
    broker.expect(jobs)
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


def borrowed_session(scope: Scope) -> Any | None:
    """The session that the scope writes rows in, if it is one of SQLAlchemy's own. Its COMMIT is not the scope's."""
    if not scope.is_lent:
        return None
    database = _database_of(scope)
    for scoped in scope.scoped_sessions:
        if scoped.database is database and scoped.sync_session.is_borrowed:
            return scoped.session
    return None


def refuse_if_required(task: str) -> None:
    """Check that jobs may be enqueued outside of a transaction.

    Raises:
        EnqueueError: ``WORKER_REQUIRE_SCOPE`` forbids it.
        ConfigError: a setting is wrong.
    """
    value = os.environ.get(_REQUIRE_SCOPE)  # asked at each call, and a Config would take a millisecond
    if value and _is_required(value):
        raise EnqueueError(
            f"{task}: {_REQUIRE_SCOPE} is set, and no scope is open here: enqueue in 'async with db.scope():' or "
            "with using(session=...), or say using(transactional=False)"
        )


@cache
def _is_required(_value: str) -> bool:
    from worker.config import Config  # noqa: PLC0415 - pydantic, for a process that sets the variable

    return Config.load().require_scope


def _database_of(scope: Scope) -> Database[Any]:
    """The default database, with the driver that the scope uses. With another driver, a row would be in a separate
    transaction. If the scope uses both drivers: that of the open transaction, else that of the later session. A further
    `Database` with the default's URL counts only where the default one is not used: it may be for reading."""
    default = default_database()
    same = [scoped for scoped in scope.scoped_sessions if scoped.database.is_same_as(default)]
    used = [scoped for scoped in same if scoped.database.is_twin_of(default)] or same
    begun = [scoped for scoped in used if scoped.session.in_transaction()]
    return next((scoped.database for scoped in reversed(begun or used)), default)


async def _reserve(session: Any, job: NewJob, broker: Broker) -> bool:
    """Reserve the job's id. False if another job has it, in the ledger or in the queue."""
    if await is_queued(job, broker):
        return False
    ledger = default_ledger()
    if await ledger.reserve(session, job):
        return True
    stored = await ledger.stored_result(session, job)
    require_pending(job, stored)
    return False


def require_pending(job: NewJob, stored: StoredResult | None) -> None:
    """Check the row that has kept the job's own row from being written.

    Raises:
        EnqueueError: an earlier job, which has ended, has the same id and enqueue time.
    """
    if stored is not None and stored.state is not State.PENDING:
        raise EnqueueError(
            f"job {job.id}: an earlier job has this id and this enqueue time, {job.enqueued_at} ms, so the ledger "
            "could not tell them apart. The clock stands still or was set back: give another id, or set the clock"
        )


async def is_queued(job: NewJob, broker: Broker) -> bool:
    """Whether a job of this id waits, runs, or has a kept result. False if Redis is away: enqueueing goes on."""
    try:
        return (await broker.status(job.queue, job.id)).holds_id
    except (redis_errors.RedisError, OSError) as error:
        logger.warning("job %s: Redis cannot say whether the id is free: %s", job.id, error)
        return False


async def _add(session: Any, batches: list[Batch]) -> None:
    if joins_transaction(session):
        for batch in batches:
            batch.transaction.is_joined = True
    await default_ledger().add_in_commit(session, _jobs(batches))


async def _publish(batches: list[Batch]) -> None:
    """Publish committed jobs. An error of Redis is only logged, as the jobs exist, and the relay publishes them."""
    if joined := _jobs(batch for batch in batches if batch.transaction.is_joined):
        unpublished = plural(len(joined), "job is", "jobs are")
        logger.info("%s not published yet: the transaction is part of an open one", unpublished)
    for batch in batches:
        if not batch.transaction.is_joined:
            count_enqueued(batch.jobs)
    committed = _jobs(batch for batch in batches if not batch.transaction.is_joined)
    try:
        await default_broker().publish(committed)
    except (redis_errors.RedisError, OSError) as error:
        logger.warning(
            "Redis did not take %s, which the relay will publish: %s", plural(len(committed), "committed job"), error
        )


def _jobs(batches: Iterable[Batch]) -> list[NewJob]:
    return [job for batch in batches for job in batch.jobs]
