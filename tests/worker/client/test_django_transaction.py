"""Jobs enqueued in a transaction of Django's exist if and only if it commits. No scope is open."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import redis
from asgiref.sync import sync_to_async
from django.db import connection, connections, transaction
from sqlalchemy import make_url

from tests.django_project import use, use_postgres
from tests.servers import Databases, Observer
from worker import Broker, Job, JobContext, task
from worker.broker.records import now_ms
from worker.context import enter_job
from worker.errors import EnqueueError, JobNotCommittedError, LedgerError


@task
async def ship(order_id: int) -> int:
    return order_id


async def in_thread(act: Callable[[], Any]) -> Any:
    """Call `act` in a thread, as Django does with a view, and close the thread's connection."""

    def call() -> Any:
        try:
            return act()
        finally:
            connections.close_all()

    return await asyncio.to_thread(call)


async def in_transaction(act: Callable[[], Any]) -> Any:
    """Call `act` in a thread and a transaction, as Django does with ATOMIC_REQUESTS."""

    def call() -> Any:
        with transaction.atomic():
            return act()

    return await in_thread(call)


@pytest.fixture
def _django(database_url: str) -> None:
    use_postgres(make_url(database_url))


class Jobs:
    """The jobs that exist, in both places."""

    def __init__(self, observer: redis.Redis, postgres: Observer) -> None:
        self._observer = observer
        self._postgres = postgres

    async def ids(self) -> set[str]:
        """The ids, which the ledger and Redis must agree on."""
        rows = {row["id"] for row in await self._postgres.fetch("SELECT id FROM tandem_jobs WHERE state = 'pending'")}
        published: Any = self._observer.zrange("arq:queue", 0, -1)
        assert set(published) == rows
        return rows


@pytest.fixture
def jobs(_django: None, broker: Broker, observer: redis.Redis, postgres: Observer) -> Jobs:
    return Jobs(observer, postgres)


async def test_a_job_is_published_when_the_block_commits_and_not_before(jobs: Jobs, observer: redis.Redis) -> None:
    """Before the commit Redis has no job and the handle says so; after it, Redis and the ledger have the job."""
    premature: list[BaseException] = []

    def view() -> Job[int]:
        with transaction.atomic():
            job = ship.using(session=connection, delay=60, expires=5).enqueue_sync(7)
            assert observer.keys() == []
            with pytest.raises(JobNotCommittedError, match="block first") as raised:
                asyncio.run(job.result(timeout=1))
            premature.append(raised.value)
        return job

    job = await in_thread(view)
    assert premature
    assert await jobs.ids() == {job.job_id}
    info = await job.info()
    assert info is not None
    assert (info.task, info.args or info.kwargs, info.status) == ("ship", {"order_id": 7}, "deferred")


async def test_a_block_that_raises_leaves_nothing(jobs: Jobs) -> None:
    """Neither a job with an id of its own, nor one without."""

    def view() -> None:
        ship.using(session=connection).enqueue_sync(7)
        ship.using(session=connection, job_id="named").enqueue_sync(7)
        raise LookupError

    with pytest.raises(LookupError):
        await in_transaction(view)
    assert await jobs.ids() == set()


async def test_jobs_of_a_rolled_back_savepoint_go_with_it(jobs: Jobs) -> None:
    """The job that was enqueued before the savepoint stays."""

    def view() -> str:
        kept = ship.using(session=connection).enqueue_sync(1)
        with pytest.raises(LookupError), transaction.atomic():
            ship.using(session=connection).enqueue_sync(2)
            raise LookupError
        return kept.job_id

    kept = await in_transaction(view)
    assert await jobs.ids() == {kept}


async def test_many_jobs_are_one_call(jobs: Jobs) -> None:
    """They are written and published together."""
    calls = [{"order_id": number} for number in range(1500)]
    added = await in_transaction(lambda: ship.using(session=connection).enqueue_many_sync(calls))
    assert await jobs.ids() == {job.job_id for job in added}
    assert len(added) == 1500


async def test_an_id_that_is_taken_adds_nothing(jobs: Jobs) -> None:
    """In the same transaction, where only the ledger knows the id, and later, when Redis knows it too."""

    def twice() -> list[bool]:
        named = ship.using(session=connection, job_id="seven")
        return [named.enqueue_sync(7).is_new, named.enqueue_sync(7).is_new]

    assert await in_transaction(twice) == [True, False]
    assert await in_transaction(twice) == [False, False]
    assert await jobs.ids() == {"seven"}


async def test_without_an_open_block_it_is_an_error(jobs: Jobs) -> None:
    """Django would commit the row by itself. The message says what to open."""
    with pytest.raises(EnqueueError, match=r"no transaction.atomic\(\) is open on Django's connection 'default'"):
        await in_thread(lambda: ship.using(session=connection).enqueue_sync(7))
    assert await jobs.ids() == set()


async def test_awaiting_in_a_transaction_of_django_is_an_error(jobs: Jobs) -> None:
    """Its connection belongs to a thread without an event loop. The message names the call to make."""
    with pytest.raises(EnqueueError, match="call enqueue_sync inside"):
        await ship.using(session=connection).enqueue(7)
    assert await jobs.ids() == set()


async def test_a_job_that_a_job_enqueues_names_its_parent(jobs: Jobs, postgres: Observer) -> None:
    """The row has the columns of the origin, too."""

    def body() -> None:
        enter_job(JobContext("first", "ship", "arq:queue", 1, now_ms()))
        ship.using(session=connection).enqueue_sync(7)

    await in_transaction(body)
    assert await postgres.fetchval("SELECT parent FROM tandem_jobs") == "first"


async def test_async_code_enqueues_by_way_of_sync_to_async(jobs: Jobs) -> None:
    """In the thread that asgiref gives to all synchronous code."""

    def place() -> str:
        try:
            with transaction.atomic():
                return ship.using(session=connection, job_id="seven").enqueue_sync(7).job_id
        finally:
            connections.close_all()

    added = await sync_to_async(place)()
    assert await jobs.ids() == {added}


async def test_a_connection_can_be_one_of_several(jobs: Jobs) -> None:
    """`connections[alias]` serves as well as `connection`."""

    def view() -> str:
        return ship.using(session=connections["default"]).enqueue_sync(7).job_id

    added = await in_transaction(view)
    assert await jobs.ids() == {added}


async def test_a_database_without_the_ledger_says_what_to_run(databases: Databases, broker: Broker) -> None:
    """The error is the one that other sessions get."""
    with databases.bare() as url:
        use_postgres(url)
        with pytest.raises(LedgerError, match="is missing: run 'python -m worker migrate'"):
            await in_transaction(lambda: ship.using(session=connection).enqueue_sync(7))


@pytest.mark.usefixtures("_django", "broker")
async def test_redis_that_is_away_is_no_error_after_the_commit(
    postgres: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    """The row is there for the relay, and the log says so."""
    away = Broker("redis://127.0.0.1:1", default=True)
    try:
        job = await in_transaction(lambda: ship.using(session=connection).enqueue_sync(7))
        assert await postgres.fetchval("SELECT state FROM tandem_jobs WHERE id = $1", job.job_id) == "pending"
        assert "which the relay will publish" in caplog.text
    finally:
        await away.close()


async def test_a_sqlite_file_serves_too(sqlite_url: str, broker: Broker, observer: redis.Redis) -> None:
    """With a new id and with one of the caller's."""
    use(ENGINE="django.db.backends.sqlite3", NAME=make_url(sqlite_url).database)

    def view() -> list[bool]:
        named = ship.using(session=connection, job_id="seven")
        ship.using(session=connection).enqueue_sync(7)
        return [named.enqueue_sync(7).is_new, named.enqueue_sync(7).is_new]

    assert await in_transaction(view) == [True, False]
    assert observer.zcard("arq:queue") == 2
