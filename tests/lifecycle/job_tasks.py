"""Tasks for the tests of jobs in a real worker, with their registry and resources."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any

import arq
from arq.worker import func
from pydantic import BaseModel
from sqlalchemy import text

import db
from worker import JobContext, Resource, Retry, cron, injected, task

INSERT = text("INSERT INTO note (words) VALUES (:words)")


class Receipt(BaseModel):
    number: int
    at: datetime


class OutOfStockError(Exception):
    """An exception class that only this module has."""


class UnprintableError(Exception):
    """An exception that cannot be printed, as one that touches an expired ORM object."""

    def __str__(self) -> str:
        raise LookupError


@task
async def add(session: db.AsyncSession, words: str) -> Receipt:
    await session.execute(INSERT, {"words": words})
    return Receipt(number=len(words), at=datetime(2026, 1, 2, tzinfo=UTC))


@task
async def fail(session: db.AsyncSession, how: str) -> Any:
    """Insert a row, then fail in the given way."""
    result: Any = "done"
    await session.execute(INSERT, {"words": f"fail {how}"})
    match how:
        case "built-in":
            raise KeyError(how)
        case "its own":
            raise OutOfStockError(how)
        case "cancelled":
            raise asyncio.CancelledError(how)
        case "exit":
            raise SystemExit(3)
        case "unprintable":
            raise UnprintableError
        case "swallow":
            with contextlib.suppress(Exception):
                await session.execute(text("SELECT 1/0"))
        case "result":
            result = len
        case "deferred":
            await session.execute(text("INSERT INTO reply VALUES (999)"))
    return result


@task
def add_in_thread(session: db.Session, words: str) -> str:
    session.execute(INSERT, {"words": words})
    return "from a thread"


@task(timeout=0.3)
async def exceed_timeout(session: db.AsyncSession, seconds: float = 30) -> None:
    await session.execute(INSERT, {"words": "slow"})
    await session.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": seconds})


@task(max_tries=3)
async def retry_twice(session: db.AsyncSession, job: JobContext = injected) -> int:
    """Insert a row and retry, twice. Succeed at the third attempt."""
    await session.execute(INSERT, {"words": f"attempt {job.attempt}"})
    if job.attempt < 3:
        raise Retry(defer=0.05)
    return job.attempt


@task
async def greet(name: str, greeting: Annotated[str, Resource("greeting")] = injected) -> str:
    return f"{greeting}, {name}"


@task
async def enqueue_add(session: db.AsyncSession, words: str, commit: bool) -> None:
    """Enqueue `add` in this job's transaction."""
    await add.enqueue(words)
    await session.execute(INSERT, {"words": f"handed on {words}"})
    if not commit:
        raise ValueError


@task
async def write_slowly(session: db.AsyncSession, words: str, seconds: float) -> None:
    """Insert a row, wait, and insert another."""
    await session.execute(INSERT, {"words": f"{words} 1"})
    await asyncio.sleep(seconds)
    await session.execute(INSERT, {"words": f"{words} 2"})


@task
def write_slowly_in_thread(session: db.Session, words: str, seconds: float) -> None:
    session.execute(INSERT, {"words": f"{words} 1"})
    time.sleep(seconds)
    session.execute(INSERT, {"words": f"{words} 2"})


@cron(second=set(range(60)))
async def tick(session: db.AsyncSession) -> None:
    await session.execute(INSERT, {"words": f"tick {time.time_ns()}"})


async def arq_function(ctx, number, factor=2):  # type: ignore[no-untyped-def]  # as arq's users write them
    await ctx["session"].execute(INSERT, {"words": f"arq {number}"})
    await ctx["redis"].enqueue_job("add", f"from arq {number}")
    return [number * factor, ctx["job_try"], ctx["greeting"]]


async def arq_cron(ctx: dict[Any, Any]) -> None:
    await ctx["session"].execute(INSERT, {"words": f"arq cron {time.time_ns()}"})


@contextlib.asynccontextmanager
async def lifespan() -> AsyncIterator[dict[str, Any]]:
    yield {"greeting": "Hello"}


TASKS = (
    *(
        f"{__name__}.{name}"
        for name in (
            "add",
            "fail",
            "add_in_thread",
            "exceed_timeout",
            "retry_twice",
            "greet",
            "enqueue_add",
            "write_slowly",
            "write_slowly_in_thread",
        )
    ),
    func(arq_function, name="arq_function"),
)
SCHEDULED = (f"{__name__}.tick", arq.cron(arq_cron, second=set(range(60))))
LIFESPAN = f"{__name__}.lifespan"
