"""A project as a user has it tests itself with the kit: with each pytest plugin, with frozen clocks, without a loop."""

import pytest

from tests.lifecycle.conftest import Project
from tests.servers import Observer

SHOP = """
import db
from db.asgi import SessionMiddleware
from fastapi import FastAPI, HTTPException
from sqlalchemy import text

from tasks.mail import ship

app = FastAPI()
app.add_middleware(SessionMiddleware)


@app.post("/orders/{order_id}")
async def order(order_id: int, in_stock: bool = True) -> str:
    session = await db.session()
    await session.execute(text("INSERT INTO note (words) VALUES (:words)"), {"words": f"order {order_id}"})
    job = await ship.using(delay=60).enqueue(order_id)
    if not in_stock:
        raise HTTPException(409)
    return job.job_id
"""

MAIL = """
from db import AsyncSession
from sqlalchemy import text
from worker import task


@task(keep_result=0)
async def ship(session: AsyncSession, order_id: int) -> str:
    await session.execute(text("INSERT INTO note (words) VALUES (:words)"), {"words": f"shipped {order_id}"})
    return f"shipped {order_id}"


@task
async def refund(session: AsyncSession, order_id: int) -> None: ...
"""

ASYNC_CONFTEST = """
import httpx
import pytest

from shop import app

pytest_plugins = ["db.testing", "worker.testing"]


@pytest.fixture
def client():
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop")
"""

ASYNC_TESTS = """
import pytest
from sqlalchemy import text

import db
from tasks.mail import refund, ship

{mark}

NUMBERS = range(3)


async def notes():
    async with db.scope():
        return sorted((await (await db.session()).scalars(text("SELECT words FROM note"))).all())


@pytest.mark.parametrize("number", NUMBERS)
async def test_an_order_is_shipped(jobs, savepoint_database, client, number):
    assert (await client.post(f"/orders/{{number}}")).status_code == 200
    await jobs.assert_enqueued(ship, order_id=number, delay=60)
    await jobs.refute_enqueued(refund)
    assert len(await jobs.drain()) == 0
    assert (await jobs.advance(minutes=1)).completed == 1
    assert await notes() == [f"order {{number}}", f"shipped {{number}}"]


@pytest.mark.parametrize("number", NUMBERS)
async def test_an_order_that_fails_is_not(savepoint_database, jobs, client, number):
    assert (await client.post(f"/orders/{{number}}", params={{"in_stock": False}})).status_code == 409
    await jobs.refute_enqueued()
    assert await notes() == []


async def test_two_jobs_of_one_id_in_one_moment_are_two_jobs(jobs, savepoint_database, frozen):
    for number in (7, 8):
        async with db.scope():
            assert (await ship.using(job_id="one").enqueue(number)).is_new
        assert (await jobs.drain()).counts == {{"completed": 1}}
    assert await notes() == ["shipped 7", "shipped 8"]
"""

FROZEN = """
import pytest


@pytest.fixture(params=["time_machine", "freezegun"])
def frozen(request):
    if request.param == "time_machine":
        import time_machine

        with time_machine.travel("2026-01-01", tick=False):
            yield
    else:
        import freezegun

        with freezegun.freeze_time("2026-01-01", real_asyncio=True):
            yield
"""

SYNC_TESTS = """
import pytest
from fastapi.testclient import TestClient

import db.testing
import worker.testing
from shop import app
from tasks.mail import ship


@pytest.fixture
def client():
    with TestClient(app) as client:
        with client.portal.wrap_async_context_manager(db.testing.savepoints()):
            yield client
        client.portal.call(db.default_database().dispose)


@pytest.fixture
def jobs(client):
    with client.portal.wrap_async_context_manager(worker.testing.jobs()) as jobs:
        yield worker.testing.blocking(jobs, client.portal)


@pytest.mark.parametrize("number", range(2))
def test_an_order_is_shipped(client, jobs, number):
    assert client.post(f"/orders/{number}").status_code == 200
    job = jobs.assert_enqueued(ship, order_id=number)
    assert jobs.advance(minutes=1).completed == 1
    assert jobs.redeliver(job).outcome == "duplicate"
    assert jobs.perform(ship, 9).result == "shipped 9"
    assert jobs.using(attempt=2).perform(ship, 10).result == "shipped 10"


def test_an_order_that_fails_is_not(client, jobs):
    assert client.post("/orders/1", params={"in_stock": False}).status_code == 409
    jobs.refute_enqueued(ship)
"""

MODES = {
    "a loop for each test": ("", ["-o", "asyncio_mode=auto"]),
    "one loop for all tests": (
        'pytestmark = pytest.mark.asyncio(loop_scope="session")',
        ["-o", "asyncio_default_fixture_loop_scope=session", "-o", "asyncio_default_test_loop_scope=session"],
    ),
    "strict mode": ("pytestmark = pytest.mark.asyncio", ["-o", "asyncio_mode=strict"]),
    "anyio": ("pytestmark = pytest.mark.anyio", ["-p", "no:asyncio"]),
    "several processes": ("", ["-o", "asyncio_mode=auto", "-n", "2"]),
}


@pytest.fixture
def shop(project: Project, notes: None, worker_settings: dict[str, str]) -> Project:
    """A web application, its tasks, and its tests."""
    project.write("tasks/mail.py", MAIL)
    project.write("tasks/registry.py", 'TASKS = ("tasks.mail.ship", "tasks.mail.refund")')
    project.write("shop.py", SHOP)
    return project


@pytest.mark.parametrize("mode", MODES)
async def test_a_projects_own_tests_pass(shop: Project, postgres: Observer, mode: str) -> None:
    """With each way to run them, without any Redis; and they leave nothing behind."""
    mark, options = MODES[mode]
    anyio_backend = '@pytest.fixture\ndef anyio_backend():\n    return "asyncio"\n' if mode == "anyio" else ""
    shop.write("conftest.py", ASYNC_CONFTEST + FROZEN.replace("import pytest\n", "", 1) + anyio_backend)
    shop.write("test_orders.py", ASYNC_TESTS.format(mark=mark))
    number = [] if "-n" in options else ["-n", "0"]
    with shop.command("pytest", "-q", "--rootdir=.", *number, *options, REDIS_URL="") as tests:
        assert await tests.ends() == 0, tests.output
        assert "8 passed" in tests.output
    assert await postgres.fetchval("SELECT count(*) FROM note") == 0
    assert await postgres.fetchval("SELECT count(*) FROM tandem_jobs") == 0


async def test_tests_without_an_event_loop_pass(shop: Project, postgres: Observer) -> None:
    """With Starlette's `TestClient`, whose application runs on a loop of its own."""
    shop.write("test_orders.py", SYNC_TESTS)
    with shop.command("pytest", "-q", "-n", "0", "--rootdir=.", REDIS_URL="") as tests:
        assert await tests.ends() == 0, tests.output
        assert "3 passed" in tests.output
    assert await postgres.fetchval("SELECT count(*) FROM note") == 0
