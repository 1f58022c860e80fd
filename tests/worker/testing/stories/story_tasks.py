"""The tasks of the stories."""

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import sqlalchemy as sa
from pydantic import BaseModel

import db
from tests.worker.testing.note_tasks import Address, write
from worker import Chunk, JobContext, Resource, Retry, Task, current_job, injected, task


class Label(BaseModel):
    """A result with fields."""

    text: str
    copies: int


class BusyError(Exception):
    """An error that a task is retried on."""


@task
async def note(session: db.AsyncSession, words: str) -> str:
    await write(session, words)
    return words.upper()


@task
async def echo(value: str) -> str:
    return value


@task(once=False)
async def note_at_least_once(session: db.AsyncSession) -> None:
    count = await session.scalar(sa.text("SELECT count(*) FROM note"))
    await write(session, f"at least once {count}")


@task
async def types(key: UUID, at: datetime, price: Decimal, address: Address, pause: timedelta, raw: bytes) -> str:
    return f"{key} {at.isoformat()} {price} {address.city} {pause} {raw!r}"


@task
async def with_default(number: int, factor: int = 10) -> int:
    return number * factor


@task
async def several(values: list[int], names: dict[str, int | None]) -> int:
    return sum(values) + sum(value or 0 for value in names.values())


@task
async def label(text: str) -> Label:
    return Label(text=text, copies=2)


@task
async def nothing(session: db.AsyncSession) -> None:
    await write(session, "nothing")


@task
async def unserialisable(session: db.AsyncSession) -> Any:
    await write(session, "never")
    return object()


@task
async def too_large(session: db.AsyncSession) -> str:
    await write(session, "never")
    return "x" * 40_000_000


@task
async def fails(session: db.AsyncSession, words: str) -> None:
    await write(session, words)
    raise ValueError(words)


@task(max_tries=3)
async def fails_twice(session: db.AsyncSession, job: JobContext) -> int:
    await write(session, f"attempt {job.attempt}")
    if job.attempt < 3:
        raise Retry
    return job.attempt


@task(max_tries=2)
async def always_retries(session: db.AsyncSession) -> None:
    await write(session, "never")
    raise Retry


@task(max_tries=2, retry_on=(BusyError,))
async def busy_once(job: JobContext) -> int:
    if job.attempt == 1:
        raise BusyError("busy")
    return job.attempt


@task(max_tries=5)
async def other_error(session: db.AsyncSession) -> None:
    raise KeyError("no retry for this")


@task(max_tries=2)
async def retries_later(job: JobContext) -> int:
    if job.attempt == 1:
        raise Retry(defer=0.2)
    return job.attempt


@task
async def cancels_itself(session: db.AsyncSession) -> None:
    await write(session, "never")
    raise asyncio.CancelledError


@task
async def leaves(session: db.AsyncSession) -> None:
    await write(session, "never")
    raise SystemExit(3)


@task(timeout=0.2)
async def too_slow(session: db.AsyncSession) -> None:
    await write(session, "never")
    await asyncio.sleep(60)


@task
async def swallows(session: db.AsyncSession, words: str) -> None:
    await write(session, words)
    try:
        async with session.begin_nested():
            await write(session, words)
    except sa.exc.IntegrityError:
        await write(session, f"{words} again")


@task
async def poisons(session: db.AsyncSession) -> None:
    try:
        await session.execute(sa.text("SELECT * FROM no_such_table"))
    except sa.exc.DBAPIError:
        return


@task
async def commits_early(session: db.AsyncSession) -> None:
    await write(session, "early")
    await db.commit()
    await write(session, "late")
    raise ValueError("after the commit")


@task
async def parent(session: db.AsyncSession, words: str, *, then_fails: bool = False) -> None:
    await write(session, words)
    await note.enqueue(f"child of {words}")
    if then_fails:
        raise ValueError(words)


@task
async def parent_of(job: JobContext) -> str | None:
    return job.parent


@task
async def describes(job: JobContext) -> list[Any]:
    return [job.task, job.queue, job.attempt, job.previous, job.job_id]


@task(queue="other")
async def elsewhere(job: JobContext) -> str:
    return job.queue


@task
def plain(number: int) -> int:
    return number + 1


@task
def plain_session(session: db.Session, words: str) -> None:
    session.execute(sa.text("INSERT INTO note (words) VALUES (:words)"), {"words": words})


@task
def plain_job() -> str:
    return current_job().task


@task
def plain_fails(number: int) -> int:
    return number // 0


@task
async def with_resource(client: Annotated[str, Resource("http")] = injected) -> str:
    return client


@task
async def missing_resource(client: Annotated[str, Resource("no such resource")] = injected) -> str:
    return client


@task
async def runs_callbacks(session: db.AsyncSession) -> None:
    async def later() -> None:
        async with db.scope():
            await write(await db.session(), "after the commit")

    await write(session, "in the transaction")
    db.on_commit(later)


@dataclass
class Note:
    """One call of `notes_together`."""

    words: str


@task(chunk=Chunk(size=3, wait=0.2))
async def notes_together(session: db.AsyncSession, calls: list[Note]) -> list[str]:
    for call in calls:
        await write(session, call.words)
        if call.words == "bad":
            raise ValueError("a bad note")
    return [call.words.upper() for call in calls]


TASKS: list[Task[..., Any]] = [value for value in list(globals().values()) if isinstance(value, Task)]
