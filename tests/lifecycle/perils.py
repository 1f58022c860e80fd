"""What the workers run that the tests kill: the tasks and their registry. What they do is appended to a file."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from worker import JobContext, cron, current_job, task

TASKS = tuple(
    f"tests.lifecycle.perils.{name}" for name in ("nap", "hold", "insert", "die", "spin", "stay", "once_in_a_leap_year")
)
LIFESPAN = "tests.lifecycle.perils.lifespan"


def write_down(words: str) -> None:
    """Add a line, whole even if others write at the same time or this process dies."""
    descriptor = os.open(os.environ["DIARY"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{words}\n".encode())
    os.close(descriptor)


@asynccontextmanager
async def lifespan() -> AsyncIterator[dict[str, object]]:
    """Says when it is entered and left; waits in between for as long as `SLOW_START` says."""
    write_down("lifespan begins")
    try:
        await asyncio.sleep(float(os.environ.get("SLOW_START", "0")))
        yield {}
    finally:
        write_down("lifespan ends")


@task
async def nap(job: JobContext, seconds: float) -> str:
    """Sleep."""
    write_down(f"begin {job.job_id}")
    await asyncio.sleep(seconds)
    write_down(f"end {job.job_id}")
    return job.job_id


@task
async def hold(job: JobContext, file: str) -> str:
    """Wait until there is a file."""
    write_down(f"begin {job.job_id}")
    while not Path(file).exists():  # noqa: ASYNC110, ASYNC240 - another process makes it
        await asyncio.sleep(0.01)
    return "held"


@task
async def insert(session: AsyncSession) -> None:
    """Add a row."""
    job_id = current_job().job_id
    write_down(f"begin {job_id}")
    await session.execute(text("INSERT INTO effect (job_id) VALUES (:job_id)"), {"job_id": job_id})


@task
async def die(job: JobContext) -> None:
    """End the process on the spot."""
    write_down(f"begin {job.job_id}")
    os._exit(9)


@task(timeout=0.3)
async def spin(job: JobContext) -> None:
    """Never give the event loop back."""
    write_down(f"begin {job.job_id}")
    while True:
        time.sleep(0.01)  # noqa: ASYNC251 - the mistake under test


@task
def stay(job: JobContext) -> None:
    """A thread that nothing can stop."""
    write_down(f"begin {job.job_id}")
    time.sleep(60)


@cron("0 0 29 2 *")
async def once_in_a_leap_year() -> None: ...
