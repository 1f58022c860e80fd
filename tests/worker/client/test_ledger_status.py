"""`Job` where Redis does not know a job and the ledger does, on a real PostgreSQL."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis
from pydantic import BaseModel

import db
from db.database import Database
from tests.proxy import Proxy
from tests.servers import Observer
from tests.waiting import eventually
from tests.worker.new_jobs import new_job
from worker import Broker, Job, JobFailed, task
from worker.broker.records import Completion, JobStatus
from worker.errors import EnqueueError, LedgerAwayError, ResultNotFoundError
from worker.ledger import FinalRow, Ledger, State

pytestmark = pytest.mark.usefixtures("broker", "database")


class Receipt(BaseModel):
    number: int


@task
async def send(number: int) -> Receipt:
    return Receipt(number=number)


async def lost(observer: redis.Redis, **using: Any) -> Job[Receipt]:
    """Enqueue a job in a transaction, and let Redis lose it."""
    async with db.scope():
        job = await send.using(**using).enqueue(7)
    observer.flushdb()
    return job


async def record_outcome(job: Job[Any], postgres: Observer, state: State, **columns: Any) -> None:
    enqueued_at = await postgres.fetchval("SELECT enqueued_at FROM tandem_jobs WHERE id = $1", job.job_id)
    await Ledger().complete([FinalRow(job.job_id, enqueued_at, "send", "arq:queue", state, **columns)])


class TestPending:
    async def test_a_job_that_is_committed_and_not_published_is_queued_or_deferred(self, observer: redis.Redis) -> None:
        """A job that is committed and not published yet is queued, or deferred."""
        now, later = await lost(observer), await lost(observer, delay=60)
        assert (await now.status(), await later.status()) == (JobStatus.queued, JobStatus.deferred)
        info = await now.info()
        assert info is not None
        assert (info.task, info.kwargs, info.status, info.success) == ("send", {"number": 7}, JobStatus.queued, None)

    async def test_result_waits_for_an_unpublished_job_until_the_ledger_has_its_outcome(
        self, observer: redis.Redis, postgres: Observer
    ) -> None:
        """`result()` does not raise that there is no such job; it returns once the ledger has the outcome."""
        job = await lost(observer)
        waiting = asyncio.create_task(job.result(timeout=30))
        done, _ = await asyncio.wait({waiting}, timeout=1)
        assert not done
        await record_outcome(job, postgres, State.DONE, result=b'{"number":7}')
        assert await waiting == Receipt(number=7)

    async def test_an_unpublished_job_can_be_aborted(self, observer: redis.Redis) -> None:
        """An aborted job is not published any more."""
        job = await lost(observer)
        assert await job.abort(timeout=5)
        assert await Ledger().pending(job.job_id) is None
        assert not await job.abort(timeout=5)
        with pytest.raises(asyncio.CancelledError):
            await job.result(timeout=30)


class TestEnded:
    async def test_the_result_of_a_done_job_comes_from_the_ledger(
        self, observer: redis.Redis, postgres: Observer
    ) -> None:
        """The ledger has the result when the one in Redis has expired."""
        job = await lost(observer)
        await record_outcome(job, postgres, State.DONE, result=b'{"number":7}', started_at=1_000, tries=2)
        assert await job.result(timeout=30) == Receipt(number=7)
        info = await job.info()
        assert info is not None
        assert (info.status, info.success, info.result, info.tries) == (
            JobStatus.complete,
            True,
            Receipt(number=7),
            2,
        )
        assert info.started_at is not None
        assert info.finished_at is not None

    async def test_the_error_of_a_failed_job_comes_from_the_ledger(
        self, observer: redis.Redis, postgres: Observer
    ) -> None:
        """Built-in exceptions are raised as themselves, others as `JobFailed`."""
        job = await lost(observer)
        await record_outcome(job, postgres, State.FAILED, result=b'{"type":"ValueError","message":"no","args":["no"]}')
        with pytest.raises(ValueError, match=r"^no$"):
            await job.result(timeout=30)
        other = await lost(observer)
        await record_outcome(
            other, postgres, State.FAILED, result=b'{"type":"shop.Sold","message":"out"}', traceback="TB"
        )
        with pytest.raises(JobFailed) as caught:
            await other.result(timeout=30)
        assert (caught.value.type, caught.value.message, caught.value.traceback) == ("shop.Sold", "out", "TB")

    @pytest.mark.parametrize(
        ("state", "error"),
        [(State.EXPIRED, "worker.errors.JobExpiredError"), (State.DISCARDED, "discarded")],
        ids=str,
    )
    async def test_an_expired_or_discarded_job_raises_job_failed(
        self, observer: redis.Redis, postgres: Observer, state: State, error: str
    ) -> None:
        """The error's type says whether the job has expired or was discarded."""
        job = await lost(observer)
        await record_outcome(job, postgres, state)
        with pytest.raises(JobFailed) as caught:
            await job.result(timeout=30)
        assert caught.value.type == error


class TestAnEarlierJob:
    """The ledger's row of an earlier job of the id says nothing about this job."""

    async def test_a_job_without_a_row_does_not_get_the_result_of_an_earlier_job_of_its_id(
        self, observer: redis.Redis, postgres: Observer
    ) -> None:
        """A job without a row and without a result in Redis has no result, not even the earlier job's."""
        old = await lost(observer, job_id="daily")
        await record_outcome(old, postgres, State.DONE, result=b'{"number":7}')
        new = await send.using(job_id="daily").enqueue(7)
        assert new.is_new
        observer.flushdb()
        assert (await new.status(), await new.info()) == (JobStatus.not_found, None)
        with pytest.raises(ResultNotFoundError):
            await new.result(timeout=30)
        assert await old.result(timeout=30) == Receipt(number=7)
        assert await Job[Receipt]("daily").status() is JobStatus.complete

    async def test_an_abort_does_not_end_an_earlier_job_of_the_id(self, observer: redis.Redis) -> None:
        """The earlier job is pending and is not aborted in place of the later one."""
        old = await lost(observer, job_id="daily")
        new = await send.using(job_id="daily").enqueue(7)
        observer.flushdb()
        assert not await new.abort(timeout=5)
        assert await old.abort(timeout=5)

    async def test_a_job_with_id_and_enqueue_time_of_an_earlier_one_is_refused(
        self, observer: redis.Redis, postgres: Observer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The clock of another process may stand still too. Then the job is refused: the ledger would take it
        for the earlier job, and never run it.
        """
        monkeypatch.setattr("worker.client.enqueue_time.now_ms", lambda: 5_000)
        monkeypatch.setattr("worker.client.enqueue_time._last", OrderedDict())
        monkeypatch.setattr("worker.client.enqueue_time._REMEMBERED", 0)  # as if each job had a process of its own
        old = await lost(observer, job_id="daily")
        async with db.scope():
            assert not (await send.using(job_id="daily").enqueue(7)).is_new  # it is pending
        await record_outcome(old, postgres, State.DONE, result=b'{"number":7}')
        async with db.scope():
            with pytest.raises(EnqueueError, match="clock stands still or was set back"):
                await send.using(job_id="daily").enqueue(7)


class TestNotInTheLedger:
    async def test_a_job_that_neither_redis_nor_the_ledger_knows_is_not_found(self) -> None:
        """A job that neither Redis nor the ledger knows has neither info nor result."""
        job = Job[None]("nobody")
        assert (await job.status(), await job.info()) == (JobStatus.not_found, None)
        with pytest.raises(ResultNotFoundError):
            await job.result(timeout=30)

    async def test_without_the_ledgers_table_the_answer_of_redis_stands(self, postgres: Observer) -> None:
        """Without the table, only Redis is asked."""
        await postgres.execute("DROP TABLE tandem_jobs")
        assert await Job[None]("nobody").status() == JobStatus.not_found

    async def test_without_a_database_the_answer_of_redis_stands(
        self, database: Database[db.AsyncSession], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A program that only enqueues needs no database."""
        monkeypatch.delenv("DATABASE_URL", raising=False)
        db.set_default_database(None)
        assert await Job[None]("nobody").status() == JobStatus.not_found
        db.set_default_database(database)


class TestDatabaseAway:
    @pytest.fixture
    async def proxy(self, database_url: str, database: Database[db.AsyncSession]) -> AsyncIterator[Proxy]:
        """A proxy before the default database."""
        async with Proxy(database_url) as proxy:
            behind = Database[db.AsyncSession](proxy.url, default=True, pre_ping=False)
            yield proxy
            await behind.dispose()
            db.set_default_database(database)

    async def test_result_waits_while_the_database_is_away(
        self, proxy: Proxy, observer: redis.Redis, postgres: Observer
    ) -> None:
        """While the database is away, `result()` does not raise that there is no such job."""
        job = await lost(observer)
        proxy.refuse()
        await proxy.drop()
        waiting = asyncio.create_task(job.result(timeout=20))
        done, _ = await asyncio.wait({waiting}, timeout=1.5)
        assert not done
        await proxy.resume()
        await record_outcome(job, postgres, State.DONE, result=b'{"number":7}')
        assert await waiting == Receipt(number=7)

    async def test_an_abort_while_the_database_is_away_is_an_error(self, proxy: Proxy, observer: redis.Redis) -> None:
        """The error says that the ledger does not answer, not that there is no such job."""
        job = await lost(observer)
        proxy.refuse()
        await proxy.drop()
        with pytest.raises(LedgerAwayError, match="does not answer"):
            await job.abort(timeout=5)
        assert await job.status() == JobStatus.not_found  # as far as Redis knows
        await proxy.resume()
        assert await job.abort(timeout=5)


async def test_a_caller_that_waits_asks_the_ledger_about_twice_a_second(
    observer: redis.Redis, postgres: Observer
) -> None:
    """A caller that waits for a pending job asks the ledger about twice a second."""
    job = await lost(observer)
    asked: list[str] = []

    class Counting(Ledger):
        async def latest(self, job_id: str, enqueued_at: int | None = None) -> Any:
            asked.append(job_id)
            return await super().latest(job_id, enqueued_at)

    monkey = pytest.MonkeyPatch()
    monkey.setattr("worker.client.ledger_status.default_ledger", Counting)
    try:
        with pytest.raises(TimeoutError):
            await job.result(timeout=1.8)
    finally:
        monkey.undo()
    assert 2 <= len(asked) <= 6
    await record_outcome(job, postgres, State.DONE)


async def test_the_result_of_a_job_that_is_published_meanwhile_is_pushed(broker: Broker, observer: redis.Redis) -> None:
    """Once the job is published, its end is pushed to the caller as that of any other job."""
    job = await lost(observer)
    waiting = asyncio.create_task(job.result(timeout=30))
    row = await Ledger().pending(job.job_id)
    assert row is not None
    await broker.publish([new_job(row.id, row.payload, row.queue)])
    claimed = await broker.claim("arq:queue", "t" * 28, 5_000, 1)
    await eventually(job.status, equals=JobStatus.in_progress)
    raw = b'{"t":1,"f":"send","a":[],"k":{},"et":%d,"s":true,"st":1,"ft":2,"q":"arq:queue","id":"x","r":{"number":7}}'
    raw %= row.enqueued_at
    await broker.finish("arq:queue", [Completion(claimed.jobs[0].raw_id, "t" * 28, "end", raw, 60_000)])
    assert await waiting == Receipt(number=7)
