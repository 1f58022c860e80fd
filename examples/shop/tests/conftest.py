from collections.abc import AsyncIterator

import httpx
import pytest
from shop.models import Order
from shop.web import app

import db
from worker.testing import Jobs

pytest_plugins = ["db.testing", "worker.testing"]


class FakeCarrier:
    """Gives parcels numbers, and remembers them."""

    def __init__(self) -> None:
        self.sent: list[int] = []

    async def send(self, order_id: int) -> str:
        self.sent.append(order_id)
        return f"P{order_id}"


@pytest.fixture
def carrier(jobs: Jobs) -> FakeCarrier:
    carrier = FakeCarrier()
    jobs.resources["carrier"] = carrier
    return carrier


@pytest.fixture
async def client(savepoint_database: object) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
        yield client


@pytest.fixture
async def order(client: httpx.AsyncClient) -> int:
    """The number of an order."""
    await client.post("/orders", json={"id": 7, "email": "ann@example.org"})
    return 7


async def state_of(order_id: int) -> str:
    async with db.scope():
        return (await (await db.session()).get_one(Order, order_id)).state
