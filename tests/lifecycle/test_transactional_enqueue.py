"""A job that is enqueued in a transaction exists if and only if the transaction commits."""

import asyncio
import signal
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import pytest
import redis
from fastapi import Depends, FastAPI, HTTPException

import db
import worker
from db.asgi import SessionMiddleware, get_session
from tests.commands import Command
from tests.lifecycle import job_tasks
from tests.proxy import Proxy
from tests.servers import Observer
from tests.waiting import eventually
from tests.web import FAIL_AT_COMMIT, WRITE, count, notebook, serving
from worker import Job

SessionDep = Annotated[db.AsyncSession, Depends(get_session)]
SOON = 20.0  # seconds that a worker may need to start, and to run a job


@pytest.fixture
async def app(
    database_url: str, postgres: Observer, broker: worker.Broker
) -> AsyncIterator[tuple[FastAPI, worker.Broker]]:
    """An app that writes and enqueues in one request."""
    async with notebook(database_url, postgres):
        app = FastAPI()
        app.add_middleware(SessionMiddleware)
        yield app, broker


async def rows(postgres: Observer) -> int:
    return int(await postgres.fetchval("SELECT count(*) FROM tandem_jobs"))


async def test_a_sync_endpoint_enqueues_in_the_transaction_of_its_request(
    app: tuple[FastAPI, worker.Broker], postgres: Observer, redis_url: str
) -> None:
    """A 500 leaves no job. A 200 leaves a job in Redis and its row."""

    @app[0].post("/orders")
    def order(*, fails: bool) -> str:
        job = job_tasks.add.enqueue_sync(words="confirm")
        if fails:
            raise HTTPException(500)
        return job.job_id

    with redis.Redis.from_url(redis_url) as observer:
        async with serving(app[0]) as client:
            assert (await client.post("/orders?fails=true")).status_code == 500
            assert (observer.keys("*"), await rows(postgres)) == ([], 0)
            response = await client.post("/orders?fails=false")
        assert response.status_code == 200
        assert observer.zrange("arq:queue", 0, -1) == [response.json().encode()]
    assert await rows(postgres) == 1


async def test_a_request_whose_commit_fails_leaves_no_row_and_no_job(
    app: tuple[FastAPI, worker.Broker], postgres: Observer, redis_url: str
) -> None:
    """The COMMIT violates a deferred foreign key: the client gets a 500, and Redis has no key."""

    @app[0].post("/orders")
    async def order(session: SessionDep) -> str:
        await session.execute(WRITE, {"words": "order"})
        await session.execute(FAIL_AT_COMMIT)
        return (await job_tasks.add.enqueue(words="confirm")).job_id

    async with serving(app[0]) as client:
        assert (await client.post("/orders")).status_code == 500
    with redis.Redis.from_url(redis_url) as observer:
        assert observer.keys("*") == []
    assert await count(postgres) == 0
    assert await rows(postgres) == 0


async def test_a_request_that_commits_has_its_job(app: tuple[FastAPI, worker.Broker], postgres: Observer) -> None:
    """When the client gets the response, the note, the job's row and the job itself exist."""

    @app[0].post("/orders")
    async def order(session: SessionDep) -> str:
        await session.execute(WRITE, {"words": "order"})
        return (await job_tasks.add.enqueue(words="confirm")).job_id

    async with serving(app[0]) as client:
        response = await client.post("/orders")
        assert response.status_code == 200
        job_id = response.json()
        assert await postgres.fetchval("SELECT id FROM tandem_jobs WHERE state = 'pending'") == job_id
        assert await Job[None](job_id, broker=app[1]).status() == "queued"
    assert await count(postgres) == 1


@pytest.mark.usefixtures("notes")
async def test_a_process_killed_between_commit_and_publish_loses_nothing(
    worker_settings: dict[str, str], postgres: Observer, redis_url: str, broker: worker.Broker, tmp_path: Path
) -> None:
    """The job runs within ten seconds, although its producer never reached Redis."""
    (tmp_path / "producer.py").write_text(
        textwrap.dedent(
            """
            import asyncio
            import db
            from tests.lifecycle.job_tasks import add

            async def main():
                async with db.scope():
                    await add.enqueue(words="kept")

            asyncio.run(main())
            """
        )
    )
    async with Proxy(redis_url) as proxy:
        proxy.blackhole()
        settings = worker_settings | {"REDIS_URL": proxy.url}
        with Command("producer", folder=tmp_path, environment=settings) as producer:
            await eventually(lambda: rows(postgres), timeout=SOON, equals=1)
            producer.send(signal.SIGKILL)
            assert await producer.ends() == -signal.SIGKILL
        await proxy.drop()
    with redis.Redis.from_url(redis_url) as observer:
        assert observer.keys("*") == []
    registry = {"WORKER_REGISTRY": "tests.lifecycle.job_tasks"}
    with Command("worker", "run", folder=tmp_path, environment=worker_settings | registry) as running:
        await running.says("works on")
        async with asyncio.timeout(10):
            await eventually(lambda: postgres.fetchval("SELECT words FROM note"), timeout=10, equals="kept")
    assert await postgres.fetchval("SELECT state FROM tandem_jobs WHERE task = 'add'") == "done"
    assert broker.name == "arq:queue"
