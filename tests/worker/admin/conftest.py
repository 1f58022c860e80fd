"""A deployment on real servers, and workers in the test's own process."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

import db
import worker
from tests.worker.engine.conftest import StartWorker, Worker
from worker import Broker
from worker.admin.deployment import Deployment
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
