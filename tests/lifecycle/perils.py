"""What the workers run that the tests kill: the tasks and their registry. What they do is appended to a file."""

import asyncio
import ctypes
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from db import on_commit
from worker import JobContext, cron, current_job, task

TASKS = tuple(
    f"tests.lifecycle.perils.{name}"
    for name in (
        *("nap", "hold", "insert", "fall", "die", "spin", "stay", "once_in_a_leap_year"),
        *("keep_interpreter", "keep_interpreter_early", "keep_interpreter_for_good", "fork", "linger"),
    )
)
LIFESPAN = "tests.lifecycle.perils.lifespan"


def write_down(words: str) -> None:
    """Add a line, whole even if others write at the same time or this process dies."""
    descriptor = os.open(os.environ["DIARY"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{words}\n".encode())
    os.close(descriptor)


@asynccontextmanager
async def lifespan() -> AsyncIterator[dict[str, object]]:
    """Says when it is entered and left; waits in between for as long as `SLOW_START` says; raises where it `BREAKS`."""
    write_down("lifespan begins")
    try:
        await asyncio.sleep(float(os.environ.get("SLOW_START", "0")))
        yield {}
    finally:
        write_down("lifespan ends")
        if os.environ.get("BREAKS"):
            raise LookupError("it cannot be closed")


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


def kill_once(moment: str) -> None:
    """kill -9 this process, the first time that a job of that name comes here."""
    if f"fall {moment}" not in Path(os.environ["DIARY"]).read_text().splitlines():
        write_down(f"fall {moment}")
        os.kill(os.getpid(), signal.SIGKILL)


def _claimed(moment: str) -> str:
    if moment.startswith("claimed") and "DIARY" in os.environ:  # not where it is enqueued
        kill_once(moment)
    return moment


@task
async def fall(session: AsyncSession, moment: Annotated[str, AfterValidator(_claimed)]) -> None:
    """Add a row, and kill the process once: after the claim, in the body, or between COMMIT and finish."""
    await session.execute(text("INSERT INTO effect (job_id) VALUES (:job_id)"), {"job_id": moment})
    if moment.startswith("in the body"):
        kill_once(moment)
    if moment.startswith("committed"):
        on_commit(lambda: kill_once(moment))


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


def _no_python_for(seconds: float) -> None:
    """As a C call that does not release the interpreter: no other thread runs meanwhile."""
    ctypes.PyDLL(None).usleep(round(seconds * 1_000_000))


@task
async def keep_interpreter(job: JobContext, seconds: float) -> None:
    """Let no thread of this process run."""
    write_down(f"begin {job.job_id}")
    _no_python_for(seconds)
    write_down(f"end {job.job_id}")


def _keep(seconds: float) -> float:
    if "DIARY" in os.environ:  # not where it is enqueued
        write_down("kept early")
        _no_python_for(seconds)
    return seconds


@task
async def keep_interpreter_early(job: JobContext, seconds: Annotated[float, AfterValidator(_keep)]) -> None:
    """The same, before the body begins."""
    write_down(f"begin {job.job_id}")


@task(timeout=0.3)
async def keep_interpreter_for_good(job: JobContext) -> None:
    """The same, for longer than anybody would wait."""
    write_down(f"begin {job.job_id}")
    re.match(r"(a+)+$", "a" * 60 + "b")


@task
async def fork(job: JobContext, seconds: float) -> None:
    """Have a child that outlives this process."""
    if os.fork() == 0:
        time.sleep(seconds)  # noqa: ASYNC251 - in the child, which runs nothing else
        os._exit(0)
    write_down(f"begin {job.job_id}")
    await asyncio.sleep(60)


@task(timeout=0.3)
def linger(job: JobContext, file: str) -> None:
    """A thread that goes on until there is a file."""
    write_down(f"begin {job.job_id} {job.previous}")
    while not Path(file).exists():
        time.sleep(0.01)


@cron("0 0 29 2 *")
async def once_in_a_leap_year() -> None: ...
