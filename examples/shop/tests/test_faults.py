"""What goes wrong, and what does not."""

import httpx
import pytest
from conftest import FakeCarrier, state_of
from shop.shipping import ship

from worker.testing import CrashPoint, Jobs


@pytest.mark.parametrize("at", ["start", "before_commit", "after_commit"])
async def test_a_worker_that_dies_ships_once(
    jobs: Jobs, carrier: FakeCarrier, client: httpx.AsyncClient, order: int, at: CrashPoint
) -> None:
    await client.post(f"/orders/{order}/payment")
    job = await jobs.assert_enqueued(ship)
    with jobs.crash(ship, at=at):
        await jobs.drain()
    await jobs.drain()
    assert await state_of(order) == "shipped"
    assert (await jobs.redeliver(job)).outcome == "duplicate"


async def test_a_carrier_that_is_away_is_asked_again(
    jobs: Jobs, carrier: FakeCarrier, client: httpx.AsyncClient, order: int
) -> None:
    await client.post(f"/orders/{order}/payment")
    with jobs.fail(ship, httpx.ConnectError("the carrier is away")):
        assert (await jobs.drain()).retried == 1
    assert (await jobs.advance(minutes=5)).completed == 2
    assert carrier.sent == [7]


async def test_the_last_try_fails_for_good(jobs: Jobs, carrier: FakeCarrier, order: int) -> None:
    with jobs.fail(ship, httpx.ConnectError("the carrier is away")):
        assert (await jobs.using(attempt=4).perform(ship, order)).outcome == "retried"
        assert (await jobs.using(attempt=5).perform(ship, order)).outcome == "failed"


async def test_a_paused_queue_keeps_its_parcels(
    jobs: Jobs, carrier: FakeCarrier, client: httpx.AsyncClient, order: int
) -> None:
    with jobs.pause("shipping"):
        await client.post(f"/orders/{order}/payment")
        await jobs.drain()
    assert carrier.sent == []
    assert (await jobs.drain()).completed == 2
