"""`SessionMiddleware` around Litestar and Django: a request's rows and jobs are committed together, or not at all."""

import gc
import warnings
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path
from litestar import Litestar, post
from litestar.di import NamedDependency, Provide
from litestar.exceptions import HTTPException
from litestar.middleware import DefineMiddleware
from litestar.params import FromQuery
from sqlalchemy import text

import db
from db.asgi import SessionMiddleware, get_session
from tests import django_project  # noqa: F401 - sets Django up
from tests.servers import Observer
from worker import Broker, task

GOOD = text("INSERT INTO orders VALUES (1, NULL)")
FAILS_AT_COMMIT = text("INSERT INTO orders VALUES (2, 404)")


@task
async def ship(order_id: int) -> None: ...


@post("/good")
async def good(session: NamedDependency[db.AsyncSession]) -> None:
    await session.execute(GOOD)
    await ship.enqueue(1)


@post("/refused")
async def refused(session: NamedDependency[db.AsyncSession]) -> None:
    await session.execute(GOOD)
    await ship.enqueue(1)
    raise HTTPException(status_code=409)


@post("/raises")
async def raises(session: NamedDependency[db.AsyncSession]) -> None:
    await session.execute(GOOD)
    await ship.enqueue(1)
    raise LookupError


@post("/commit-fails")
async def commit_fails(session: NamedDependency[db.AsyncSession]) -> None:
    await session.execute(FAILS_AT_COMMIT)
    await ship.enqueue(1)


@post("/thread", sync_to_thread=True)
def thread(fails: FromQuery[bool]) -> None:
    ship.enqueue_sync(1)
    if fails:
        raise LookupError


def litestar() -> Any:
    return Litestar(
        [good, refused, raises, commit_fails, thread],
        middleware=[DefineMiddleware(SessionMiddleware)],
        dependencies={"session": Provide(get_session)},
        logging_config=None,
    )


async def _django_good(_request: HttpRequest) -> HttpResponse:
    await (await db.session()).execute(GOOD)
    await ship.enqueue(1)
    return HttpResponse()


async def _django_refused(request: HttpRequest) -> HttpResponse:
    await _django_good(request)
    return HttpResponse(status=409)


async def _django_raises(request: HttpRequest) -> HttpResponse:
    await _django_good(request)
    raise LookupError


async def _django_commit_fails(_request: HttpRequest) -> HttpResponse:
    await (await db.session()).execute(FAILS_AT_COMMIT)
    await ship.enqueue(1)
    return HttpResponse()


def _django_thread(request: HttpRequest) -> HttpResponse:
    ship.enqueue_sync(1)
    return HttpResponse(status=500 if request.GET["fails"] == "true" else 200)


urlpatterns = [
    path("good", _django_good),
    path("refused", _django_refused),
    path("raises", _django_raises),
    path("commit-fails", _django_commit_fails),
    path("thread", _django_thread),
]


@pytest.fixture(params=["litestar", "django"])
async def client(
    request: pytest.FixtureRequest, database_url: str, broker: Broker, postgres: Observer
) -> AsyncIterator[httpx.AsyncClient]:
    await postgres.execute(
        "CREATE TABLE orders (id int PRIMARY KEY, before int REFERENCES orders DEFERRABLE INITIALLY DEFERRED)"
    )
    database = db.Database(database_url, default=True)
    with override_settings(ROOT_URLCONF=__name__):
        app = litestar() if request.param == "litestar" else SessionMiddleware(get_asgi_application())
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()  # Django leaves a request's body open if sending its response fails
    db.set_default_database(None)
    await database.dispose()


async def counts(postgres: Observer) -> tuple[int, int]:
    """The numbers of orders and of jobs."""
    orders = await postgres.fetchval("SELECT count(*) FROM orders")
    return int(orders), int(await postgres.fetchval("SELECT count(*) FROM tandem_jobs"))


async def test_a_success_commits_the_row_and_the_job(client: httpx.AsyncClient, postgres: Observer) -> None:
    """Both are there when the client has the response."""
    assert (await client.post("/good")).is_success
    assert await counts(postgres) == (1, 1)


@pytest.mark.parametrize(("url", "status"), [("/refused", 409), ("/raises", 500), ("/commit-fails", 500)])
async def test_a_failure_leaves_neither(client: httpx.AsyncClient, postgres: Observer, url: str, status: int) -> None:
    """A status of 400 or above, an exception, and a COMMIT that fails."""
    assert (await client.post(url)).status_code == status
    assert await counts(postgres) == (0, 0)


async def test_a_plain_handler_enqueues_in_the_transaction_of_its_request(
    client: httpx.AsyncClient, postgres: Observer
) -> None:
    """It runs in a thread. `enqueue_sync` there is rolled back with the request."""
    assert (await client.post("/thread?fails=true")).status_code == 500
    assert await counts(postgres) == (0, 0)
    assert (await client.post("/thread?fails=false")).is_success
    assert await counts(postgres) == (0, 1)
