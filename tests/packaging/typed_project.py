"""A user's project as type checkers see it: it is checked against the installed wheel, and never run."""

from typing import Annotated, Any, assert_type

import sqlalchemy.ext.asyncio
import sqlalchemy.orm
from pydantic import BaseModel

import db
from worker import Job, JobContext, Resource, Retry, cron, current_job, injected, task

REPLICA = db.Database("postgresql://localhost/replica")
Replica = Annotated[db.AsyncSession, REPLICA]


class Receipt(BaseModel):
    number: int


@task
async def send_receipt(session: db.AsyncSession, order_id: int, *, copy_to: str | None = None) -> Receipt:
    order = await session.get(Receipt, order_id)
    if order is None:
        raise Retry(defer=5)
    return Receipt(number=order_id)


@task(timeout=30, max_tries=3, retry_on=(OSError,), queue="mail")
async def with_options(a: int) -> str:
    return current_job().job_id


@task
async def session_of_sqlalchemy(session: sqlalchemy.ext.asyncio.AsyncSession, a: int) -> int:
    return a


@task
async def session_of_a_replica(session: Replica, a: int) -> int:
    return a


@task
async def session_and_context(session: db.AsyncSession, job: JobContext, a: int) -> int:
    return a + job.attempt


@task
async def context_and_session(job: JobContext, session: db.AsyncSession, a: int) -> int:
    return a


@task
async def session_last(
    a: int, session: db.AsyncSession = injected, key: Annotated[str, Resource("key")] = injected
) -> int:
    return a


@task
def in_a_thread(session: sqlalchemy.orm.Session, a: int) -> bytes:
    return b""


@cron("*/5 * * * *", timezone="Europe/Berlin")
async def every_five_minutes(session: db.AsyncSession) -> None: ...


async def enqueue() -> None:
    assert_type(await send_receipt.enqueue(order_id=7), Job[Receipt])
    assert_type(await send_receipt.using(delay=60, job_id="r7").enqueue(7, copy_to="a@example.org"), Job[Receipt])
    assert_type(await send_receipt.enqueue_many([{"order_id": 7}]), list[Job[Receipt]])
    assert_type(await (await send_receipt.enqueue(7)).result(timeout=5), Receipt)
    assert_type(await with_options.enqueue(1), Job[str])
    assert_type(await session_of_sqlalchemy.enqueue(1), Job[int])
    assert_type(await session_of_a_replica.enqueue(1), Job[int])
    assert_type(await session_and_context.enqueue(1), Job[int])
    assert_type(await context_and_session.enqueue(1), Job[int])
    assert_type(await session_last.enqueue(1), Job[int])
    assert_type(await in_a_thread.enqueue(1), Job[bytes])
    every: Job[Any] = await every_five_minutes.enqueue()
    await every.abort()


async def use_sessions() -> None:
    async with db.scope():
        assert_type(await db.session(), db.AsyncSession)
        assert_type(await db.session(REPLICA), db.AsyncSession)
        assert_type(await db.session(REPLICA.sync), db.Session)
    async with db.atomic() as session:
        assert_type(session, db.AsyncSession)
