"""Enqueueing in a transaction of Django's: ``using(session=connection)`` inside ``transaction.atomic()``.

1. The rows are written at once, through Django's connection. So they end with its transaction or savepoint.
2. After the COMMIT, Django's `on_commit` publishes the jobs. It forgets those of a savepoint that was rolled back. If
   Redis is away, the relay publishes them.

Django is not imported: a connection is known by its attributes.
"""

from functools import partial

from typing_extensions import TypeIs

from worker.aio import loop_thread
from worker.broker.broker import Broker
from worker.client.enqueue import is_queued, require_pending
from worker.client.enqueued import count_enqueued
from worker.client.own_transaction import OwnTransaction, publish
from worker.errors import EnqueueError
from worker.ledger import StoredResult
from worker.ledger.default import default_ledger
from worker.ledger.django_connection import DjangoConnection, DjangoLedger
from worker.new_job import NewJob

_ATTRIBUTES = ("vendor", "alias", "in_atomic_block", "cursor", "on_commit")


def is_django_connection(value: object) -> TypeIs[DjangoConnection]:
    """Whether `value` is ``django.db.connection`` or one of ``django.db.connections``."""
    return all(hasattr(value, name) for name in _ATTRIBUTES)


def refuse_await(connection: DjangoConnection) -> EnqueueError:
    """The error for `await enqueue()` in a transaction of Django's, which belongs to a thread without a loop."""
    return EnqueueError(
        f"Django's transaction on {connection.alias!r} is synchronous: call enqueue_sync inside transaction.atomic(), "
        "from async code by way of sync_to_async"
    )


def enqueue_in_django(
    connection: DjangoConnection, jobs: list[NewJob], broker: Broker, *, is_named: bool
) -> tuple[OwnTransaction, list[bool]]:
    """Enqueue the jobs of one call, so that they exist if and only if Django's transaction commits.

    Returns:
        The transaction, and for each job whether its id was free.

    Raises:
        WorkerError: Redis cannot serve a queue of this name, so the jobs could not be published.
        EnqueueError: no ``transaction.atomic()`` is open, or an earlier job has the same id and enqueue time.
        LedgerError: the connection's database has no table of job rows.
    """
    if not connection.in_atomic_block:
        raise EnqueueError(
            f"no transaction.atomic() is open on Django's connection {connection.alias!r}, so that a job cannot be "
            "part of one: open one, or enqueue the job without session="
        )
    transaction = OwnTransaction(way_to_commit="transaction.atomic() has committed: leave its block first")
    if not jobs:
        return transaction, []
    broker.expect(jobs)
    ledger = DjangoLedger(connection, default_ledger().name)
    if is_named:
        are_free = [_reserve(ledger, job, broker) for job in jobs]
    else:
        ledger.add(jobs)
        are_free = [True] * len(jobs)
    if free := [job for job, is_free in zip(jobs, are_free, strict=True) if is_free]:
        connection.on_commit(partial(_committed, transaction, broker, free))
    return transaction, are_free


def _reserve(ledger: DjangoLedger, job: NewJob, broker: Broker) -> bool:
    """Reserve the job's id. False if another job has it, in the ledger or in the queue."""
    if loop_thread.run(is_queued(job, broker)):
        return False
    if ledger.reserve(job):
        return True
    state = ledger.state(job)
    require_pending(job, None if state is None else StoredResult(state, None))
    return False


def _committed(transaction: OwnTransaction, broker: Broker, jobs: list[NewJob]) -> None:
    transaction.is_open, transaction.is_committed = False, True
    count_enqueued(jobs)
    publish(broker, jobs)
