"""What a customer does, and what follows from it."""

from datetime import datetime, timedelta

import httpx
from conftest import FakeCarrier, state_of
from shop.models import Order
from shop.shipping import notify, remind, ship

import db
from worker.testing import Jobs


async def test_a_paid_order_is_shipped(jobs: Jobs, carrier: FakeCarrier, client: httpx.AsyncClient, order: int) -> None:
    assert (await client.post(f"/orders/{order}/payment")).status_code == 202
    await jobs.assert_enqueued(ship, order_id=order, queue="shipping", job_id="ship-7")
    tally = await jobs.drain()
    assert [run.job.task for run in tally.runs] == ["ship", "notify"]
    assert (await state_of(order), carrier.sent) == ("shipped", [7])


async def test_an_order_that_does_not_exist_ships_nothing(jobs: Jobs, client: httpx.AsyncClient) -> None:
    assert (await client.post("/orders/8/payment")).status_code == 404
    await jobs.refute_enqueued()


async def test_the_customer_is_told_after_the_parcel_is_sent(
    jobs: Jobs, carrier: FakeCarrier, client: httpx.AsyncClient, order: int
) -> None:
    await client.post(f"/orders/{order}/payment")
    await jobs.drain("shipping", recursive=False)
    (mail,) = await jobs.enqueued(notify, text=lambda text: "P7" in text)
    assert mail.args["email"] == "ann@example.org"


async def test_with_jobs_inline_the_parcel_is_sent_when_the_request_has_ended(
    jobs: Jobs, carrier: FakeCarrier, client: httpx.AsyncClient, order: int
) -> None:
    with jobs.inline():
        await client.post(f"/orders/{order}/payment")
    assert carrier.sent == [7]


async def test_an_order_that_waits_is_reminded_of_each_day(jobs: Jobs, client: httpx.AsyncClient, order: int) -> None:
    async with db.scope():
        waiting = await (await db.session()).get_one(Order, order)
        waiting.placed_at = datetime.now() - timedelta(days=2)
    tally = await jobs.advance(days=2)
    assert [run.job.task for run in tally.runs] == ["remind", "notify", "remind", "notify"]
    assert (await jobs.perform(remind)).result == 1
