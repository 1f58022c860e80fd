"""A FastAPI project with a sessionmaker of its own: a request's jobs exist if and only if its session commits.

The project knows no scope, no middleware and no `Database` of Tandem's. Its process has no DATABASE_URL.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import redis
from fastapi import Depends, FastAPI, HTTPException
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from db import in_scope
from db.database import given_default
from tests.commands import Command
from tests.lifecycle import job_tasks
from tests.proxy import Proxy
from tests.servers import Observer
from tests.waiting import eventually
from tests.web import WRITE, notes, serving
from worker import Broker, set_default_broker


@pytest.fixture
async def app(database_url: str, postgres: Observer) -> AsyncIterator[FastAPI]:
    """The project's application. It writes a note and enqueues a job, in one session."""
    await postgres.execute("CREATE TABLE note (id serial PRIMARY KEY, words text UNIQUE)")
    engine = create_async_engine(database_url)
    sessions = async_sessionmaker(engine, expire_on_commit=False)

    async def get_session() -> AsyncIterator[AsyncSession]:
        async with sessions() as session:
            yield session

    async def get_transaction() -> AsyncIterator[AsyncSession]:
        async with sessions.begin() as session:
            yield session

    app = FastAPI()

    @app.post("/orders")
    async def order(words: str, session: Annotated[AsyncSession, Depends(get_session)], fails: bool = False) -> str:
        await session.execute(WRITE, {"words": words})
        job = await job_tasks.add.using(session=session).enqueue(words=f"{words}, confirmed")
        if fails:
            raise HTTPException(409)
        await session.commit()
        return job.job_id

    @app.post("/blocks")
    async def block(words: str, session: Annotated[AsyncSession, Depends(get_transaction)], fails: bool = False) -> str:
        await session.execute(WRITE, {"words": words})
        job = await job_tasks.add.using(session=session).enqueue(words=f"{words}, confirmed")
        assert not in_scope()
        if fails:
            raise HTTPException(409)
        return job.job_id

    yield app
    await engine.dispose()


async def jobs(postgres: Observer, observer: redis.Redis) -> tuple[list[str], Any]:
    """The ids in the ledger and those in Redis."""
    rows = await postgres.fetch("SELECT id FROM tandem_jobs ORDER BY enqueued_at")
    return [row["id"] for row in rows], observer.zrange("arq:queue", 0, -1)


@pytest.mark.usefixtures("broker")
@pytest.mark.parametrize("path", ["/orders", "/blocks"])
async def test_a_rolled_back_request_leaves_no_job_and_a_committed_one_leaves_one(
    app: FastAPI, postgres: Observer, observer: redis.Redis, path: str
) -> None:
    """Whether the endpoint commits, or its dependency; also if the row that it writes is there already."""
    async with serving(app) as client:
        response = await client.post(path, params={"words": "one", "fails": True})
        assert response.status_code == 409
        assert await jobs(postgres, observer) == ([], [])
        response = await client.post(path, params={"words": "one"})
        assert response.status_code == 200
        job_id = response.json()
        await eventually(lambda: jobs(postgres, observer), equals=([job_id], [job_id]))
        assert (await client.post(path, params={"words": "one"})).status_code == 500
        assert await jobs(postgres, observer) == ([job_id], [job_id])
    assert await notes(postgres) == ["one"]
    assert given_default() is None


async def test_a_workers_relay_runs_the_job_of_a_request_that_redis_did_not_hear_of(
    app: FastAPI, worker_settings: dict[str, str], postgres: Observer, redis_url: str, tmp_path: Path
) -> None:
    """Redis is away while the request commits, so the job's row is pending; a worker runs it, once."""
    async with Proxy(redis_url) as proxy:
        proxy.refuse()
        broker = Broker(proxy.url, default=True)
        async with serving(app) as client:
            assert (await client.post("/orders", params={"words": "one", "fails": True})).status_code == 409
            assert (await client.post("/orders", params={"words": "one"})).status_code == 200
        await broker.close()
        set_default_broker(None)
    assert await notes(postgres) == ["one"]
    registry = {"WORKER_REGISTRY": "tests.lifecycle.job_tasks"}
    with Command("worker", "run", folder=tmp_path, environment=worker_settings | registry) as running:
        await running.says("works on")
        await eventually(lambda: notes(postgres), equals=["one", "one, confirmed"])
    assert await postgres.fetchval("SELECT array_agg(state) FROM tandem_jobs") == ["done"]
