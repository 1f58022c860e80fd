"""Tasks that write notes, and some that only answer."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from pydantic import BaseModel

import db
from worker import JobContext, Retry, cron, task


class Address(BaseModel):
    """An argument with fields."""

    street: str
    city: str


async def write(session: db.AsyncSession, words: str) -> None:
    """Add a note."""
    await session.execute(sa.text("INSERT INTO note (words) VALUES (:words)"), {"words": words})


async def notes() -> list[str]:
    """All notes, in a scope of their own."""
    async with db.scope():
        return list((await (await db.session()).scalars(sa.text("SELECT words FROM note ORDER BY id"))).all())


@task(keep_result=60)
async def add(session: db.AsyncSession, words: str) -> str:
    await write(session, words)
    return words.upper()


@task
async def add_each(session: db.AsyncSession, words: list[str]) -> None:
    for each in words:
        await add.enqueue(each)


@task
async def add_before(words: str) -> None:
    await add.using(at=datetime.now(UTC) - timedelta(hours=1)).enqueue(words)


@task(queue="math", keep_result=60)
def double(number: int) -> int:
    return 2 * number


@task(max_tries=3)
async def try_again(job: JobContext, session: db.AsyncSession, words: str) -> int:
    await write(session, f"{words} {job.attempt}")
    if job.attempt < 3:
        raise Retry(defer=10 * job.attempt)
    return job.attempt


@task
async def describe(key: UUID, at: datetime, address: Address, copies: int = 1) -> str:
    return f"{key} {at} {address.city} {copies}"


@cron("*/10 * * * *")
async def tick(job: JobContext, session: db.AsyncSession) -> None:
    await write(session, f"tick {datetime.fromtimestamp(job.score / 1000, UTC):%M}")
