"""What type checkers make of tasks: `make check` reads this, nothing runs it.

A line that must be an error carries a ``type: ignore``. Where it is none any more, mypy complains of the ignore.
"""

from datetime import datetime
from typing import Annotated, Any, assert_type

import sqlalchemy.ext.asyncio
import sqlalchemy.orm
from pydantic import BaseModel

import db
from worker import Job, JobContext, Resource, injected, task

REPLICA = db.Database("postgresql://localhost/replica")


class Receipt(BaseModel):
    number: int


@task
async def plain(a: int, b: str = "") -> Receipt:
    return Receipt(number=a)


@task(timeout=30, queue="mail")
async def with_options(a: int) -> str:
    return str(a)


@task
async def with_session(session: db.AsyncSession, order_id: int, *, copy_to: str | None = None) -> Receipt:
    return Receipt(number=order_id)


@task
async def with_sqlalchemys_session(session: sqlalchemy.ext.asyncio.AsyncSession, a: int) -> int:
    return a


@task
async def with_replica(session: Annotated[db.AsyncSession, REPLICA], a: int) -> int:
    return a


@task(max_tries=3)
async def with_session_and_options(session: db.AsyncSession, a: int) -> int:
    return a


@task
async def with_context(job: JobContext, a: int) -> int:
    return a


@task
async def with_session_and_context(session: db.AsyncSession, job: JobContext, a: int) -> int:
    return a


@task(timeout=1)
async def with_context_and_session(job: JobContext, session: db.AsyncSession, a: int) -> int:
    return a


@task
def in_a_thread_with_session_and_context(session: db.Session, job: JobContext, a: int) -> bytes:
    return b""


@task(timeout=1)
def in_a_thread_with_context_and_session(job: JobContext, session: db.Session, a: int) -> bytes:
    return b""


@task
async def with_more(
    session: db.AsyncSession,
    a: int,
    job: JobContext = injected,
    client: Annotated[str, Resource("http")] = injected,
) -> int:
    return a


@task
def in_a_thread(session: db.Session, a: int) -> bytes:
    return b""


@task
def in_a_thread_with_sqlalchemys_session(session: sqlalchemy.orm.Session, a: int) -> bytes:
    return b""


@task
def in_a_thread_with_context(job: JobContext, a: int) -> bytes:
    return b""


@task
def in_a_thread_with_nothing(a: int) -> bytes:
    return b""


async def right() -> None:
    """The signature is the function's own, less what is injected, and the result is its own."""
    assert_type(await plain.enqueue(1), Job[Receipt])
    assert_type(await plain.enqueue(1, b="x"), Job[Receipt])
    assert_type(await (await plain.enqueue(a=1)).result(), Receipt)
    assert_type(await plain.using(delay=5).enqueue(1, "x"), Job[Receipt])
    assert_type(await plain.enqueue_many([{"a": 1}]), list[Job[Receipt]])
    assert_type(plain.enqueue_sync(1), Job[Receipt])
    assert_type(with_session.enqueue_sync(7, copy_to="a@b.c"), Job[Receipt])
    assert_type(in_a_thread.using(delay=5).enqueue_sync(1), Job[bytes])
    with_session.enqueue_sync("seven")  # type: ignore[arg-type]
    assert_type(await with_options.enqueue(1), Job[str])
    assert_type(await with_session.enqueue(7), Job[Receipt])
    assert_type(await with_session.enqueue(order_id=7, copy_to="a@b.c"), Job[Receipt])
    assert_type(await with_sqlalchemys_session.enqueue(1), Job[int])
    assert_type(await with_replica.enqueue(1), Job[int])
    assert_type(await with_session_and_options.using(job_id="x").enqueue(1), Job[int])
    assert_type(await with_context.enqueue(1), Job[int])
    assert_type(await with_session_and_context.enqueue(1), Job[int])
    assert_type(await with_context_and_session.enqueue(1), Job[int])
    assert_type(await in_a_thread_with_session_and_context.enqueue(1), Job[bytes])
    assert_type(await in_a_thread_with_context_and_session.enqueue(1), Job[bytes])
    assert_type(await with_more.enqueue(1), Job[int])
    assert_type(await in_a_thread.enqueue(1), Job[bytes])
    assert_type(await in_a_thread_with_sqlalchemys_session.enqueue(1), Job[bytes])
    assert_type(await in_a_thread_with_context.enqueue(1), Job[bytes])
    assert_type(await in_a_thread_with_nothing.enqueue(1), Job[bytes])
    wider: Job[Any] = await plain.enqueue(1)
    base: Job[BaseModel] = await plain.enqueue(1)
    assert_type((wider, base), tuple[Job[Any], Job[BaseModel]])


async def wrong(session: db.AsyncSession) -> None:
    """What would raise where it is enqueued is an error here."""
    await plain.enqueue()  # type: ignore[call-arg]
    await plain.enqueue("1")  # type: ignore[arg-type]
    await plain.enqueue(1, 2)  # type: ignore[arg-type]
    await plain.enqueue(1, "x", "y")  # type: ignore[call-arg]
    await plain.enqueue(1, c="x")  # type: ignore[call-arg]
    await plain.using(delay="soon").enqueue(1)  # type: ignore[arg-type]
    await plain.using().enqueue(a=None)  # type: ignore[arg-type]
    await with_options.enqueue(a="x")  # type: ignore[arg-type]
    await with_session.enqueue(session, 7)  # type: ignore[call-arg, arg-type]
    await with_session.enqueue(7, "a@b.c")  # type: ignore[call-arg]
    await with_session.enqueue(session=session, order_id=7)  # type: ignore[call-arg]
    await with_session_and_options.enqueue("x")  # type: ignore[arg-type]
    await with_replica.enqueue("x")  # type: ignore[arg-type]
    await with_context.enqueue("x")  # type: ignore[arg-type]
    await with_session_and_context.enqueue("x")  # type: ignore[arg-type]
    await with_context_and_session.enqueue("x")  # type: ignore[arg-type]
    await in_a_thread.enqueue("x")  # type: ignore[arg-type]
    await in_a_thread_with_context.enqueue("x")  # type: ignore[arg-type]
    number: int = await (await plain.enqueue(1)).result()  # type: ignore[assignment]
    assert_type(number, int)
    await plain.using(at=datetime.now().date()).enqueue(1)  # type: ignore[arg-type]  # noqa: DTZ005 - a date is no moment
    task(retry_on=(KeyboardInterrupt,))  # type: ignore[arg-type]
    task(timeout="30")  # type: ignore[call-overload]
