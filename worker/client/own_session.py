"""Enqueueing in a session of the caller's own: ``using(session=session)``. No scope is needed.

1. The rows are written at once, through the session. So they end with its transaction or savepoint, whoever ends it and
   however: the session, its connection, a block, or raw SQL.
2. Right before the COMMIT, one statement reads which of the rows are still there. It fails if the transaction is
   aborted, of which the server's COMMIT would make a silent ROLLBACK.
3. After the COMMIT these jobs are published, on the session's event loop, else on the process's own one. If Redis is
   away, the relay publishes them.
4. The watched transaction is the connection's outermost one. If the session is part of another transaction, for
   example a test's, the jobs are published when that one is committed.
5. A connection of Django's is served by `django_transaction.py`.
"""

from functools import partial
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

from sqlalchemy import Connection
from sqlalchemy.engine import RootTransaction
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session
from sqlalchemy.util.concurrency import greenlet_spawn

import db
from db.aio.threads import in_thread
from worker.broker.broker import Broker
from worker.client.django_transaction import enqueue_in_django, is_django_connection, refuse_await
from worker.client.enqueue import is_queued, require_pending
from worker.client.enqueued import count_enqueued
from worker.client.own_transaction import OwnTransaction, publish, wait_for
from worker.errors import EnqueueError
from worker.ledger.connection import ConnectionLedger
from worker.ledger.default import default_ledger
from worker.ledger.django_connection import DjangoConnection
from worker.new_job import NewJob

_SQLAlchemySession: TypeAlias = (
    AsyncSession | async_scoped_session[Any] | AsyncConnection | Session | scoped_session[Any] | Connection
)
OwnSession: TypeAlias = _SQLAlchemySession | DjangoConnection
_KINDS = (AsyncSession, async_scoped_session, AsyncConnection, Session, scoped_session, Connection)


def is_own_session(value: object) -> bool:
    """Whether jobs can be enqueued in `value`."""
    return isinstance(value, _KINDS) or is_django_connection(value)


class Enqueued(NamedTuple):
    """The jobs of one call, the broker that takes them, and the transaction that they belong to."""

    transaction: OwnTransaction
    broker: Broker
    jobs: list[NewJob]


async def enqueue_in_session(
    given: OwnSession, jobs: list[NewJob], broker: Broker, *, is_named: bool
) -> tuple[OwnTransaction, list[bool]]:
    """Enqueue the jobs of one call, so that they exist if and only if the session's transaction commits.

    Args:
        is_named: whether the caller has given the ids, so that they may be taken.

    Returns:
        The transaction, and for each job whether its id was free.

    Raises:
        WorkerError: Redis cannot serve a queue of this name, so the jobs could not be published.
        EnqueueError: the session commits each statement or in two phases, it is a connection of Django's, or an
            earlier job has the same id and enqueue time.
        LedgerError: the session's database has no table of job rows.
    """
    if is_django_connection(given):
        raise refuse_await(given)
    session = _resolved(given)
    act = partial(_enqueue, jobs=jobs, broker=broker, is_named=is_named)
    if isinstance(session, AsyncSession | AsyncConnection):
        return await session.run_sync(act)
    if isinstance(session, db.Session):
        return await in_thread(act, session)
    # In a greenlet, as the session may be the synchronous one inside an AsyncSession.
    return await greenlet_spawn(act, session)


def enqueue_in_session_sync(
    given: OwnSession, jobs: list[NewJob], broker: Broker, *, is_named: bool
) -> tuple[OwnTransaction, list[bool]]:
    """Do as `enqueue_in_session`, from code without an event loop, or inside ``session.run_sync``.

    Raises:
        EnqueueError: besides, the session is asynchronous.
    """
    if is_django_connection(given):
        return enqueue_in_django(given, jobs, broker, is_named=is_named)
    session = _resolved(given)
    if isinstance(session, AsyncSession | AsyncConnection):
        raise EnqueueError(
            f"enqueue_sync cannot wait for an {type(session).__name__}: write 'await ...enqueue(...)', or call "
            "enqueue_sync inside its run_sync, with the session that run_sync passes"
        )
    return _enqueue(session, jobs=jobs, broker=broker, is_named=is_named)


def _resolved(given: _SQLAlchemySession) -> AsyncSession | AsyncConnection | Session | Connection:
    if isinstance(given, async_scoped_session | scoped_session):
        session: AsyncSession | Session = given()
        return session
    return given


def _enqueue(
    session: Session | Connection, *, jobs: list[NewJob], broker: Broker, is_named: bool
) -> tuple[OwnTransaction, list[bool]]:
    transaction = OwnTransaction()
    if not jobs:
        return transaction, []
    ledger = ConnectionLedger.of(session, default_ledger().name)
    broker.expect(jobs, ledger.connection)
    watch = _watch(ledger.connection)
    if is_named:
        are_free = [_reserve(ledger, job, broker) for job in jobs]
    else:
        ledger.add(jobs)
        are_free = [True] * len(jobs)
    if free := [job for job, is_free in zip(jobs, are_free, strict=True) if is_free]:
        watch.enqueued.append(Enqueued(transaction, broker, free))
    return transaction, are_free


def _reserve(ledger: ConnectionLedger, job: NewJob, broker: Broker) -> bool:
    """Reserve the job's id. False if another job has it, in the ledger or in the queue."""
    if wait_for(is_queued(job, broker)):
        return False
    if ledger.reserve(job):
        return True
    require_pending(job, ledger.stored_result(job))
    return False


class _Watch:
    """The jobs that were enqueued in one transaction. Holds no reference to it, so that it can be collected."""

    def __init__(self, ledger: str) -> None:
        self.enqueued: list[Enqueued] = []
        self._ledger = ledger

    def pending(self, connection: Connection) -> list[NewJob]:
        """The jobs whose rows the COMMIT will save. Raises as `ConnectionLedger.pending`."""
        jobs = [job for enqueued in self.enqueued for job in enqueued.jobs]
        return ConnectionLedger(connection, self._ledger).pending(jobs)

    def committed(self, pending: list[NewJob]) -> None:
        """Publish the jobs that were committed. Their transaction has ended, so no error is raised."""
        saved = {(job.id, job.enqueued_at) for job in pending}
        by_broker: dict[Broker, list[NewJob]] = {}
        for transaction, broker, jobs in self.enqueued:
            kept = [job for job in jobs if (job.id, job.enqueued_at) in saved]
            transaction.is_open, transaction.is_committed = False, bool(kept)
            count_enqueued(kept)
            if kept:
                by_broker.setdefault(broker, []).extend(kept)
        self.enqueued.clear()
        for broker, jobs in by_broker.items():
            publish(broker, jobs)

    def rolled_back(self) -> None:
        for transaction, _, _ in self.enqueued:
            transaction.is_open = False
        self.enqueued.clear()


_watches: WeakKeyDictionary[Connection, _Watch] = WeakKeyDictionary()


def _watch(connection: Connection) -> _Watch:
    """Watch the connection's outermost transaction from now on."""
    if connection._is_autocommit_isolation():  # noqa: SLF001 - SQLAlchemy has no public way that needs no round trip
        raise EnqueueError(
            "the session's isolation level is AUTOCOMMIT, so it has no transaction that a job could be part of: "
            "enqueue the job without session="
        )
    root = connection.get_transaction() or connection.begin()
    if isinstance(root, _WatchedTransaction):
        return _watches[connection]
    if type(root) is not RootTransaction:
        raise EnqueueError("the session commits in two phases: enqueue the job without session=, after the commit")
    # SQLAlchemy's events tell of a COMMIT before it is sent, and not whether it succeeded.
    root.__class__ = _WatchedTransaction
    watch = _watches[connection] = _Watch(default_ledger().name)
    return watch


class _WatchedTransaction(RootTransaction):
    """A transaction that jobs were enqueued in. One of SQLAlchemy's becomes one of these."""

    __slots__ = ()

    def commit(self) -> None:
        watch = _watches.get(self.connection)
        if watch is None or not (self.is_active and watch.enqueued):
            super().commit()
            return
        pending = watch.pending(self.connection)
        super().commit()
        watch.committed(pending)

    def rollback(self) -> None:
        self._forget()
        super().rollback()

    def close(self) -> None:
        self._forget()
        super().close()

    def _forget(self) -> None:
        # After a COMMIT, a second end of the same transaction must not touch the next one.
        if self.connection.get_transaction() is self and (watch := _watches.get(self.connection)) is not None:
            watch.rolled_back()
