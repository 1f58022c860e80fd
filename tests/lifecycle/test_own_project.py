"""A FastAPI project as a user has it, with its own sessions and its own tests, which pytest runs in its folder.

It has sessionmakers of SQLAlchemy's, dependencies with `yield`, and no scope. Its tests run against real servers.
"""

import redis

from tests.lifecycle.conftest import Project
from tests.servers import Observer

SHOP = """
import os
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from tasks.mail import send

engine = create_async_engine(os.environ["SHOP_DATABASE"])
SessionLocal = async_sessionmaker(engine, expire_on_commit=False)
sync_engine = create_engine(os.environ["SHOP_DATABASE"].replace("+asyncpg", "+psycopg"))
SyncSessionLocal = sessionmaker(sync_engine)


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    mail: Mapped[str] = mapped_column(unique=True)


async def get_session() -> AsyncIterator[AsyncSession]:
    async with SessionLocal() as session:
        yield session


def get_sync_session() -> Iterator[Session]:
    with SyncSessionLocal.begin() as session:
        yield session


app = FastAPI()


@app.post("/orders")
async def order(mail: str, session: Annotated[AsyncSession, Depends(get_session)], in_stock: bool = True) -> str:
    session.add(Order(mail=mail))
    job = await send.using(session=session).enqueue(mail)
    if not in_stock:
        raise HTTPException(409)
    await session.commit()
    return job.job_id


@app.post("/sync-orders")
def sync_order(mail: str, session: Annotated[Session, Depends(get_sync_session)], in_stock: bool = True) -> str:
    session.add(Order(mail=mail))
    session.flush()  # FastAPI leaves the dependency, which commits, after the response
    job = send.using(session=session).enqueue_sync(mail)
    if not in_stock:
        raise HTTPException(409)
    return job.job_id


@app.post("/mixed-orders")
async def mixed_order(mail: str, session: Annotated[Session, Depends(get_sync_session)], in_stock: bool = True) -> str:
    session.add(Order(mail=mail))
    session.flush()
    job = await send.using(session=session).enqueue(mail)
    if not in_stock:
        raise HTTPException(409)
    return job.job_id
"""

CONFTEST = '''
import os
from collections.abc import AsyncIterator

import httpx
import pytest
import redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

import shop
from worker import default_broker


class Jobs:
    """The ids in the table, which must be those in Redis."""

    async def ids(self) -> set[str]:
        async with shop.engine.connect() as connection:
            rows = set(await connection.scalars(text("SELECT id FROM tandem_jobs")))
        with redis.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True) as client:
            assert set(client.zrange("arq:queue", 0, -1)) == rows
        return rows


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with shop.engine.begin() as connection:
        await connection.run_sync(shop.Base.metadata.create_all)
    transport = httpx.ASGITransport(shop.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        yield client
    await shop.engine.dispose()
    await default_broker().close()


@pytest.fixture
async def jobs(client: httpx.AsyncClient) -> Jobs:
    return Jobs()


@pytest.fixture
async def rolled_back(client: httpx.AsyncClient) -> AsyncIterator[AsyncSession]:
    """SQLAlchemy's recipe: the application's sessions are savepoints of a transaction that is rolled back."""
    async with shop.engine.connect() as connection:
        outer = await connection.begin()
        sessions = shop.async_sessionmaker(connection, join_transaction_mode="create_savepoint")

        async def get_session() -> AsyncIterator[AsyncSession]:
            async with sessions() as session:
                yield session

        shop.app.dependency_overrides[shop.get_session] = get_session
        async with sessions() as session:
            yield session
        shop.app.dependency_overrides.clear()
        await outer.rollback()
'''

TESTS = """
import httpx
import pytest
from sqlalchemy import func, select

import db
import shop
from conftest import Jobs
from worker import Job

PATHS = ["/orders", "/sync-orders", "/mixed-orders"]


@pytest.mark.parametrize("path", PATHS)
async def test_an_order_that_fails_sends_nothing(client: httpx.AsyncClient, jobs: Jobs, path: str) -> None:
    before = await jobs.ids()
    assert (await client.post(path, params={"mail": path, "in_stock": False})).status_code == 409
    assert await jobs.ids() == before


@pytest.mark.parametrize("path", PATHS)
async def test_an_order_sends_one_mail(client: httpx.AsyncClient, jobs: Jobs, path: str) -> None:
    before = await jobs.ids()
    response = await client.post(path, params={"mail": path})
    assert response.status_code == 200
    assert await jobs.ids() - before == {response.json()}
    assert not db.in_scope()


@pytest.mark.parametrize("path", PATHS)
async def test_an_order_that_exists_sends_nothing(client: httpx.AsyncClient, jobs: Jobs, path: str) -> None:
    before = await jobs.ids()
    assert (await client.post(path, params={"mail": path})).status_code == 500
    assert await jobs.ids() == before


async def test_in_a_transaction_of_the_tests_own(client: httpx.AsyncClient, jobs: Jobs, rolled_back) -> None:
    before = await jobs.ids()
    for mail in ("a", "b"):
        assert (await client.post("/orders", params={"mail": mail})).status_code == 200
    assert (await client.post("/orders", params={"mail": "c", "in_stock": False})).status_code == 409
    assert await rolled_back.scalar(select(func.count()).select_from(shop.Order).where(shop.Order.mail < "d")) == 5
    assert await jobs.ids() == before


async def test_nothing_is_left_of_it(jobs: Jobs) -> None:
    async with shop.SessionLocal() as session:
        assert await session.scalar(select(func.count()).select_from(shop.Order)) == 3
    assert len(await jobs.ids()) == 3
"""


async def test_a_projects_own_tests_find_a_job_for_each_committed_request_and_none_for_others(
    project: Project, worker_settings: dict[str, str], postgres: Observer, observer: redis.Redis
) -> None:
    """Asynchronous sessions, and synchronous ones in the thread pool and on the loop. A worker then runs each job."""
    project.write("shop.py", SHOP)
    project.write("conftest.py", CONFTEST)
    project.write("test_orders.py", TESTS)
    settings = {"SHOP_DATABASE": worker_settings["DATABASE_URL"], "DATABASE_URL": "", "WORKER_REQUIRE_SCOPE": "true"}
    with project.command("pytest", "-q", "-n", "0", "-o", "asyncio_mode=auto", "--rootdir=.", **settings) as tests:
        assert await tests.ends() == 0
        assert "11 passed" in tests.output
    with project.arq("worker.Settings", "--burst") as burst:
        assert await burst.ends() == 0
    done = await postgres.fetch("SELECT result FROM tandem_jobs WHERE state = 'done' AND tries = 1")
    assert len(done) == 3
    assert observer.zcard("arq:queue") == 0
