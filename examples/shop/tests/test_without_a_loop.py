"""The same with Starlette's `TestClient`, in plain functions."""

from collections.abc import Iterator

import pytest
from conftest import FakeCarrier
from fastapi.testclient import TestClient
from shop.shipping import ship
from shop.web import app

import db.testing
import worker.testing


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(app) as client:
        assert client.portal is not None
        with client.portal.wrap_async_context_manager(db.testing.savepoints()):
            yield client


@pytest.fixture
def jobs(client: TestClient) -> Iterator[worker.testing.BlockingJobs]:
    assert client.portal is not None
    with client.portal.wrap_async_context_manager(worker.testing.jobs()) as jobs:
        yield worker.testing.blocking(jobs, client.portal)


def test_a_paid_order_is_shipped(client: TestClient, jobs: worker.testing.BlockingJobs) -> None:
    jobs.resources["carrier"] = FakeCarrier()
    client.post("/orders", json={"id": 7, "email": "ann@example.org"})
    client.post("/orders/7/payment")
    jobs.assert_enqueued(ship, order_id=7)
    assert jobs.drain().completed == 2
