"""The ledger's guarantees hold on PostgreSQL and on SQLite: a real engine on a real Redis."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import text

import db
from tests.worker.engine.conftest import StartWorker
from tests.worker.new_jobs import new_job
from worker import Broker, Chunk, JobFailed, task
from worker.ledger import Ledger
from worker.ledger.admin import JobAdmin, JobFilter

pytestmark = pytest.mark.usefixtures("database", "broker")


@pytest.fixture(params=["postgresql", "sqlite"])
async def database(
    request: pytest.FixtureRequest, database_url: str, sqlite_url: str
) -> AsyncIterator[db.Database[Any]]:
    """The default database, with a table of effects."""
    url = database_url if request.param == "postgresql" else sqlite_url
    database: db.Database[Any] = db.Database(url, default=True)
    async with db.scope():
        await (await db.session()).execute(text("CREATE TABLE effect (words text)"))
    yield database
    await database.dispose()
    db.set_default_database(None)


@task
async def affect(session: db.AsyncSession, words: str) -> str:
    await affect_here(session, words)
    return words


@task
async def needs_a_table(session: db.AsyncSession) -> None:
    await affect_here(session, "kept")
    await session.execute(text("INSERT INTO other (words) VALUES ('kept')"))


@task
async def enqueue_children(session: db.AsyncSession, words: str, fails: bool = False) -> None:
    """Enqueue one job, and another one in a savepoint that is rolled back."""
    await affect.enqueue(f"{words}, child")
    with suppress(LookupError):
        async with db.atomic("savepoint"):
            await affect.enqueue(f"{words}, child of a savepoint")
            raise LookupError
    await affect_here(session, words)
    if fails:
        raise ValueError(words)


async def affect_here(session: db.AsyncSession, words: str) -> None:
    await session.execute(text("INSERT INTO effect (words) VALUES (:words)"), {"words": words})


async def effects() -> list[str]:
    """All of them, in order."""
    async with db.scope():
        return [*await (await db.session()).scalars(text("SELECT words FROM effect ORDER BY words"))]


async def test_jobs_run_if_and_only_if_the_transaction_that_enqueued_them_commits(start: StartWorker) -> None:
    """In requests and in tasks; a savepoint that is rolled back drops its own jobs."""
    with suppress(LookupError):
        async with db.scope():
            await affect.enqueue("request that fails")
            raise LookupError
    async with db.scope():
        await enqueue_children.enqueue("good")
        await enqueue_children.enqueue("bad", fails=True)
    async with start(affect, enqueue_children, ledger=Ledger()) as one:
        await one.idle()
    assert await effects() == ["good", "good, child"]


async def test_an_id_that_is_pending_is_enqueued_once(start: StartWorker) -> None:
    """Within one transaction, and from one transaction to the next."""
    async with db.scope():
        new = [(await affect.using(job_id="a").enqueue("once")).is_new for _ in range(2)]
    async with db.scope():
        new.append((await affect.using(job_id="a").enqueue("once")).is_new)
    assert new == [True, False, False]
    async with start(affect, ledger=Ledger()) as one:
        await one.idle()
    assert await effects() == ["once"]


@pytest.mark.parametrize("enqueued_in_a_transaction", [True, False])
async def test_a_second_delivery_has_no_effect_and_returns_the_first_ones_result(
    start: StartWorker, broker: Broker, enqueued_in_a_transaction: bool
) -> None:
    """For jobs enqueued in a transaction and outside of one."""
    async with db.scope():
        job = await affect.using(transactional=enqueued_in_a_transaction, job_id="a").enqueue("once")
    payload = await broker.redis.get("arq:job:a")
    async with start(affect, ledger=Ledger()) as one:
        for _ in range(2):
            assert await job.result(timeout=30) == "once"
            await one.idle()
            await broker.redis.delete("arq:result:a")
            await broker.enqueue([new_job("a", payload, broker.name)])
        await one.idle()
    assert await effects() == ["once"]


async def test_a_failed_job_has_no_effect_is_kept_and_can_be_retried(start: StartWorker) -> None:
    """What made it fail is repaired before the retry."""
    job = await needs_a_table.enqueue()
    async with start(needs_a_table, ledger=Ledger()) as one:
        with pytest.raises(JobFailed):
            await job.result(timeout=30)
        await one.idle()
        desk = JobAdmin(Ledger().name)
        (key,) = await desk.keys(JobFilter())
        async with db.scope():
            await (await db.session()).execute(text("CREATE TABLE other (words text)"))
        retried, refused = await desk.retry([key])
        assert (len(retried), refused) == (1, [])
        assert await effects() == []
        await one.idle()  # publishes what is pending
    assert await effects() == ["kept"]


async def test_a_statement_that_only_mentions_read_only_does_not_make_its_transaction_so(start: StartWorker) -> None:
    """A column is named so; the job is done as any other."""

    @task(max_tries=1)
    async def lock(session: db.AsyncSession) -> None:
        await session.execute(text("INSERT INTO effect (words) SELECT 'kept' AS read_only"))

    async with start(lock, ledger=Ledger()) as one:
        await (await lock.enqueue()).result(timeout=30)
        await one.idle()
    assert await effects() == ["kept"]


@dataclass
class Effect:
    """One call of `affect_all`."""

    words: str


@task(chunk=Chunk(size=5, wait=1.0))
async def affect_all(session: db.AsyncSession, effects: list[Effect]) -> list[str]:
    for effect in effects:
        await affect_here(session, effect.words)
        if effect.words == "bad":
            raise ValueError(effect.words)
    return [effect.words for effect in effects]


async def test_the_jobs_of_a_chunk_are_done_once_each_and_a_bad_one_fails_alone(
    start: StartWorker, broker: Broker
) -> None:
    """Also if one of the chunk comes a second time."""
    words = ["a", "b", "bad", "c"]
    jobs = [await affect_all.using(job_id=each).enqueue(words=each) for each in words]
    payload = await broker.redis.get("arq:job:b")
    async with start(affect_all, ledger=Ledger()) as one:
        results = await asyncio.gather(*(job.result(timeout=30) for job in jobs), return_exceptions=True)
        assert list(map(str, results)) == words
        await one.idle()
        await broker.redis.delete("arq:result:b")
        await broker.enqueue([new_job("b", payload, broker.name)])
        await affect_all.enqueue(words="d")
        await one.idle()
    assert await effects() == ["a", "b", "c", "d"]
