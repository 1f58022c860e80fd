"""The tasks of the shop."""

from datetime import datetime, timedelta
from typing import Annotated

from httpx import HTTPError
from sqlalchemy import select

from db import AsyncSession
from shop.carrier import Carrier
from shop.models import Order
from worker import Resource, cron, injected, task


@task(queue="shipping", max_tries=5, retry_on=(HTTPError,))
async def ship(
    session: AsyncSession, order_id: int, carrier: Annotated[Carrier, Resource("carrier")] = injected
) -> str:
    """Send the parcel of an order, and tell the customer."""
    order = await session.get_one(Order, order_id)
    order.parcel = await carrier.send(order_id)
    order.state = "shipped"
    await notify.enqueue(order.email, f"Your parcel is {order.parcel}.")
    return order.parcel


@task
async def notify(email: str, text: str) -> None:
    """Mail a customer. The shop of this example has no mail server."""


@cron("0 9 * * *", timezone="Europe/Berlin")
async def remind(session: AsyncSession) -> int:
    """Remind of the orders that have waited for a day."""
    yesterday = datetime.now() - timedelta(days=1)
    waiting = (await session.scalars(select(Order).where(Order.state == "new", Order.placed_at < yesterday))).all()
    for order in waiting:
        await notify.enqueue(order.email, f"Order {order.id} waits for your payment.")
    return len(waiting)
