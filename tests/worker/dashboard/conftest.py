"""The dashboard on the test's own servers, without and with a browser."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import asyncpg
import httpx
import pytest
from sqlalchemy import URL

import db
from tests.chromium import chromium_or_skip, launched
from tests.servers import as_dsn
from tests.worker.dashboard.world import World
from worker import Broker
from worker.dashboard import Token, dashboard

OPERATOR, VIEWER = "operator-token-1234", "viewer-token-567890"
AUTH = Token(OPERATOR, VIEWER)
SAME_ORIGIN = {"sec-fetch-site": "same-origin"}


def as_operator(**options: Any) -> AbstractAsyncContextManager[httpx.AsyncClient]:
    """A client of a new dashboard that acts as an operator's browser does."""
    return client_of(**options, token=OPERATOR)


@asynccontextmanager
async def client_of(
    *, token: str | None = None, host: str = "127.0.0.1", base: str = "http://test", **options: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a new dashboard."""
    app = dashboard(**({"auth": AUTH} | options))
    headers = SAME_ORIGIN | ({} if token is None else {"authorization": f"Bearer {token}"})
    transport = httpx.ASGITransport(app, client=(host, 4_000))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url=base, headers=headers) as client,
    ):
        yield client


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[None]:
    """The default database, with an empty ledger."""
    database: db.Database[Any] = db.Database(database_url, default=True)
    yield
    await database.dispose()
    db.set_default_database(None)


@pytest.fixture
async def servers(database: None, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty ledger and an empty Redis, and a registry with schedules."""
    monkeypatch.setenv("WORKER_QUEUES", "arq:queue,mail,reports")
    monkeypatch.setenv("WORKER_REGISTRY", "tests.worker.dashboard.shop")


@pytest.fixture
async def empty_world(servers: None, broker: Broker, _database: URL) -> AsyncIterator[World]:
    """A world without jobs."""
    connection = await asyncpg.connect(as_dsn(_database))
    yield World(broker, connection)
    await connection.close()


@pytest.fixture
async def world(empty_world: World) -> AsyncIterator[World]:
    """Jobs in every state, and workers."""
    await empty_world.furnish()
    async with empty_world.workers():
        yield empty_world


@pytest.fixture
async def browser() -> AsyncIterator[Any]:
    """A real Chromium."""
    async with launched(chromium_or_skip()) as launched_browser:
        yield launched_browser
