"""A deployment on real servers, and workers in the test's own process."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

import db
import worker
from tests.servers import Observer
from tests.worker.admin.failed_jobs import adder
from tests.worker.engine.conftest import StartWorker, Worker
from worker import Broker
from worker.admin.deployment import Deployment
from worker.admin.failures import Failures
from worker.aio.background import Background
from worker.ledger import Ledger

ACTOR = "ann"


@pytest.fixture
def deployment(broker: Broker, database: db.Database[Any]) -> Deployment:
    """The run's Redis, and a ledger in a database of the test's own."""
    return Deployment(broker, Ledger(), (broker.name,))


@pytest.fixture
def without_ledger(broker: Broker) -> Deployment:
    """The run's Redis alone."""
    return Deployment(broker, None, (broker.name,))


@pytest.fixture
def start(redis_url: str, broker: Broker) -> StartWorker:
    """Runs a worker of these tasks, with a ledger, for the length of a block."""

    @contextlib.asynccontextmanager
    async def started(*tasks: worker.Task[..., Any], url: str = redis_url, **settings: Any) -> AsyncIterator[Worker]:
        one = Worker(url, *tasks, **({"ledger": Ledger()} | settings))
        one.engine.start()
        try:
            yield one
        finally:
            await one.stop()

    return started


@pytest.fixture
async def failures(database_url: str, broker: Broker) -> AsyncIterator[Failures]:
    database: db.Database[Any] = db.Database(database_url, default=True)
    background = Background()
    yield Failures(background=background)
    await background.close()
    await database.dispose()
    db.set_default_database(None)


@pytest.fixture
def add(postgres: Observer) -> Callable[..., Awaitable[None]]:
    """Adds failed jobs."""
    return adder(postgres)
