"""What becomes of a job that is asked for: queued at once, or a row of the transaction that is open.

1. Outside a transaction it goes straight to the queue.
2. In one, rows are collected and written in one statement before its COMMIT; then one round trip publishes them. They
   go with the savepoint that they were made in. Redis may be away: the relay publishes them later.
3. A job with an id of its caller's is written at once, as the caller is to know whether the id was free.
4. Where the transaction is part of one that somebody else ends, a test's say, nothing is published: what is never
   committed runs nowhere, and what is committed after all the relay publishes.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from redis.exceptions import RedisError

from db import Database, default_database
from db.callbacks import Entry as Callback
from db.guarded import joins_transaction
from db.scope import Scope
from worker.errors import EnqueueError
from worker.exchange import EXPIRES, NEVER, Entry
from worker.ledger import Pending, State
from worker.ledger.default import default_ledger
from worker.queue import Queue, default_queue

logger = logging.getLogger("worker")


@dataclass(slots=True, eq=False)
class Transaction:
    """The transaction that the jobs of one request were enqueued in."""

    scope: Scope
    on_commit: Callback | None = None
    is_joined: bool = False
    """Whether it is part of one that somebody else ends, a test's say."""

    @property
    def is_committed(self) -> bool:
        return self.on_commit is not None and self.on_commit.is_over

    @property
    def is_open(self) -> bool:
        """Whether it is to be committed yet."""
        return self.scope.is_open and not self.is_committed


class Terms(NamedTuple):
    """What the jobs of one request have in common. Times are milliseconds."""

    is_named: bool
    """Whether the id is the caller's own, and so may be taken."""
    enqueued_at: int
    task: str
    queue: str
    due: int | None
    delay: int
    expires: int | None
    """How long it may wait past its due time; None: the default, which is longer in a transaction."""
    transaction: Transaction | None = None
    """What they exist with; None: they are queued at once."""


class Submitted(NamedTuple):
    """One job that is asked for."""

    id: str
    payload: bytes
    terms: Terms

    def entry(self, expires: int) -> Entry:
        """For the queue; `expires` is the default."""
        terms = self.terms
        patience = expires if terms.expires is None else terms.expires
        return Entry(self.id, self.payload, terms.queue, terms.delay, terms.due, patience)

    @property
    def row(self) -> Pending:
        """For the ledger."""
        terms = self.terms
        return Pending(
            self.id, terms.enqueued_at, terms.task, terms.queue, self.payload, terms.due, terms.delay, terms.expires
        )


async def submit(jobs: Sequence[Submitted], queue: Queue) -> list[bool]:
    """Queue the jobs now; of each, whether its id was free."""
    return await queue.enqueue([job.entry(EXPIRES) for job in jobs])


async def submit_in(transaction: Transaction, jobs: Sequence[Submitted], queue: Queue) -> list[bool]:
    """Let the jobs of one request exist if and only if the default database's transaction in the scope commits.

    Returns:
        Of each, whether its id was free.

    Raises:
        WorkerError: Redis cannot serve the queue under its name, so that nobody could publish the jobs.
        EnqueueError: an earlier job has the id and the enqueue time.
    """
    if not jobs:
        return []
    terms = jobs[0].terms
    queue.check_name(terms.queue)
    scope = transaction.scope
    database = _database_of(scope)
    if terms.is_named:
        session = await scope.session(database)
        transaction.is_joined = joins_transaction(session)
        are_free = [await _reserve(session, job, queue) for job in jobs]
    else:
        are_free = [True] * len(jobs)
        scope.before_commit_batch(_add, list(jobs), database)
    free = [job for job, is_free in zip(jobs, are_free, strict=True) if is_free]
    if free:
        transaction.on_commit = scope.on_commit_batch(_publish, free, database)
    return are_free


def _database_of(scope: Scope) -> Database[Any]:
    """The default database, through the driver by which the scope uses it: through another one, a row would be in a
    transaction of its own. Where it uses both, that of the transaction that is open, else of the later session."""
    default = default_database()
    used = [unit for unit in scope.units if unit.database.is_same_as(default)]
    begun = [unit for unit in used if unit.session.in_transaction()]
    return next((unit.database for unit in reversed(begun or used)), default)


async def _reserve(session: Any, job: Submitted, queue: Queue) -> bool:
    """Take the job's id: whether nobody has it in the ledger, nor in the queue."""
    if await _is_queued(job, queue):
        return False
    ledger = default_ledger()
    if await ledger.reserve(session, job.row):
        return True
    known = await ledger.known(session, job.row)
    if known is not None and known.state is not State.PENDING:
        raise EnqueueError(
            f"job {job.id}: an earlier job has this id and this enqueue time, {job.terms.enqueued_at} ms, so that the "
            "ledger would take both for one. The clock stands still or was set back: give another id, or set the clock"
        )
    return False


async def _is_queued(job: Submitted, queue: Queue) -> bool:
    """Whether a job of this id waits, runs, or has a kept result. A Redis that is away keeps nobody from enqueueing."""
    try:
        return (await queue.trace(job.terms.queue, job.id)).holds_id
    except (RedisError, OSError) as error:
        logger.warning("Redis does not say whether the id %s is free: %s", job.id, error)
        return False


async def _add(session: Any, jobs: list[Submitted]) -> None:
    if joins_transaction(session):
        for job in jobs:
            if job.terms.transaction is not None:
                job.terms.transaction.is_joined = True
    await default_ledger().add(session, [job.row for job in jobs])


async def _publish(jobs: list[Submitted]) -> None:
    """Send what was committed. That Redis does not take it is not the caller's error: the jobs exist."""
    committed = [job for job in jobs if job.terms.transaction is None or not job.terms.transaction.is_joined]
    if len(committed) < len(jobs):
        logger.info("%d jobs are in a transaction that goes on: not published", len(jobs) - len(committed))
    try:
        await default_queue().publish([job.entry(NEVER) for job in committed])
    except (RedisError, OSError) as error:
        logger.warning("Redis did not take %d committed jobs, which the relay will publish: %s", len(committed), error)
