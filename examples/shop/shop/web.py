"""The application of the shop."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel

import db
from db.asgi import SessionMiddleware, get_session
from shop.models import Order
from shop.shipping import ship
from worker import default_broker
from worker.dashboard import Token, dashboard

Session = Annotated[db.AsyncSession, Depends(get_session)]


class NewOrder(BaseModel):
    id: int
    email: str


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await default_broker().close()
    await db.default_database().dispose()


app = FastAPI(lifespan=lifespan)
app.add_middleware(SessionMiddleware)
app.mount("/jobs", dashboard(auth=Token(os.environ["SHOP_TOKEN"]), title="Shop", queues=["shipping"]))


@app.post("/orders", status_code=201)
async def place(new: NewOrder, session: Session) -> None:
    if await session.get(Order, new.id) is not None:
        raise HTTPException(409, "there is an order of this number")
    session.add(Order(id=new.id, email=new.email))


@app.post("/orders/{order_id}/payment", status_code=202)
async def pay(order_id: int, session: Session) -> dict[str, str]:
    order = await session.get(Order, order_id)
    if order is None:
        raise HTTPException(404, "there is no such order")
    order.state = "paid"
    job = await ship.using(job_id=f"ship-{order_id}").enqueue(order_id)
    return {"job": job.job_id}
