"""Payload recovery: a claimed job whose payload Redis has lost, on a real Redis and PostgreSQL."""

from typing import Any

import pytest
import redis

import db
from db.database import Database
from db.transient import transient
from tests.proxy import Proxy
from tests.servers import Observer
from tests.waiting import eventually
from tests.worker.engine.conftest import StartWorker
from worker import Broker, Job, JobFailed, task
from worker.broker.records import Claim
from worker.engine.execution import Execution
from worker.engine.limits import Limits
from worker.engine.payload_recovery import PayloadRecovery
from worker.ledger import FinalRow, Ledger, State

TOKEN = "t" * 28

pytestmark = pytest.mark.usefixtures("database")


@task
async def echo(number: int) -> int:
    return number


async def lost(observer: redis.Redis, **using: Any) -> str:
    """The id of a job that was enqueued in a transaction, and whose payload Redis has evicted."""
    async with db.scope():
        job = await echo.using(**using).enqueue(7)
    observer.delete(f"arq:job:{job.job_id}")
    return job.job_id


async def claim(broker: Broker) -> Claim:
    (claimed,) = (await broker.claim(broker.name, TOKEN, 10_000, 10)).jobs
    assert claimed.payload is None
    return claimed


async def recovered(claim: Claim) -> bytes | None:
    """The payload that a claim gets."""
    execution = Execution(claim, "arq:queue", TOKEN, 0, Limits(60, 5, 0, 60))
    await PayloadRecovery(Ledger()).recover(execution)
    return execution.claim.payload


async def test_a_pending_jobs_lost_payload_is_recovered_from_its_row(
    broker: Broker, observer: redis.Redis, postgres: Observer
) -> None:
    """It is the payload that the job was enqueued with."""
    await lost(observer)
    assert await recovered(await claim(broker)) == await postgres.fetchval("SELECT payload FROM tandem_jobs")


@pytest.mark.parametrize("state", [State.DONE, State.FAILED, State.ABORTED, State.EXPIRED, State.DISCARDED], ids=str)
async def test_the_payload_of_a_job_that_has_ended_is_not_recovered(
    broker: Broker, observer: redis.Redis, postgres: Observer, state: State
) -> None:
    """Only a pending row makes a job run."""
    job_id = await lost(observer)
    enqueued_at = await postgres.fetchval("SELECT enqueued_at FROM tandem_jobs")
    await Ledger().complete([FinalRow(job_id, enqueued_at, "echo", broker.name, state)])
    assert await recovered(await claim(broker)) is None


async def test_the_payload_of_an_expired_job_is_not_recovered(
    broker: Broker, observer: redis.Redis, postgres: Observer
) -> None:
    """Redis removed the payload when the job expired, so the job does not run although its row is pending."""
    await lost(observer, expires=60)
    await postgres.execute("UPDATE tandem_jobs SET due = due - 61000")
    assert await recovered(await claim(broker)) is None


async def test_waiting_for_the_result_of_an_expired_job_raises(
    start: StartWorker, observer: redis.Redis, postgres: Observer
) -> None:
    """The job fails as expired."""
    job_id = await lost(observer, expires=60)
    await postgres.execute("UPDATE tandem_jobs SET due = due - 61000")
    async with start(echo, ledger=Ledger()):
        with pytest.raises(JobFailed, match="expired"):
            await Job[int](job_id).result(timeout=30)


async def test_a_job_without_a_row_has_no_payload_to_recover(broker: Broker, observer: redis.Redis) -> None:
    """A job enqueued outside a transaction has expired. An id need not be text."""
    for raw_id in (b"direct", b"\xff\xfe", b"a\0b"):
        observer.zadd(broker.name, {raw_id: 1_000})
        assert await recovered(await claim(broker)) is None


async def test_recovery_while_the_database_is_down_raises_a_transient_error(
    broker: Broker, observer: redis.Redis, database_url: str
) -> None:
    """Until the database answers it is unknown whether the job is to run."""
    await lost(observer)
    claimed = await claim(broker)
    async with Proxy(database_url) as proxy:
        away = Database[db.AsyncSession](proxy.url, default=True)
        proxy.refuse()
        with pytest.raises(db.DatabaseUnreachableError) as caught:
            await recovered(claimed)
        assert transient(caught.value) is not None
        await away.dispose()


async def test_a_job_without_a_payload_is_put_back_until_the_database_is_up(
    start: StartWorker, observer: Any, database_url: str
) -> None:
    """Until then no payload is made up for it. Then it runs."""
    async with Proxy(database_url) as proxy:
        theirs = db.default_database()
        away = Database[db.AsyncSession](proxy.url, default=True)
        async with start(echo, ledger=Ledger()) as worker_:
            await worker_.trusts_redis()
            job_id = await lost(observer, delay=1)
            due = observer.zscore("arq:queue", job_id)
            proxy.refuse()
            await proxy.drop()
            await eventually(lambda: observer.zscore("arq:queue", job_id) > due + 100)
            await eventually(lambda: not worker_.engine.jobs.executions)
            assert not observer.exists(f"arq:job:{job_id}")
            await proxy.resume()
            assert await Job[int](job_id).result(timeout=20) == 7
        await away.dispose()
        db.database.set_default_database(theirs)
