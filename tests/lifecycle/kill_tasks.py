"""Tasks for the tests that kill, freeze and stop workers, with their registry. They log what they do to a file."""

import asyncio
import ctypes
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from db import on_commit
from worker import Chunk, JobContext, cron, current_job, task

TASKS = tuple(
    f"tests.lifecycle.kill_tasks.{name}"
    for name in (
        *(
            "sleep",
            "wait_for_file",
            "insert_row",
            "kill_worker_at",
            "kill_worker_of_chunk_at",
            "exit_worker",
            "block_event_loop",
            "block_thread",
            "run_on_leap_day",
        ),
        *("hold_gil", "hold_gil_in_validator", "hold_gil_forever", "fork_child", "block_thread_until_file"),
    )
)
LIFESPAN = "tests.lifecycle.kill_tasks.lifespan"


def log_line(words: str) -> None:
    """Append a line to the task log. It stays whole if other processes write at the same time or this one is killed."""
    descriptor = os.open(os.environ["TASK_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{words}\n".encode())
    os.close(descriptor)


@asynccontextmanager
async def lifespan() -> AsyncIterator[dict[str, object]]:
    """Log entry and exit. Sleep for `SLOW_START` seconds on entry; raise on exit if `BREAKS` is set."""
    log_line("lifespan begins")
    try:
        await asyncio.sleep(float(os.environ.get("SLOW_START", "0")))
        yield {}
    finally:
        log_line("lifespan ends")
        if os.environ.get("BREAKS"):
            raise LookupError("it cannot be closed")


@task
async def sleep(job: JobContext, seconds: float) -> str:
    """Sleep for `seconds`."""
    log_line(f"begin {job.job_id}")
    await asyncio.sleep(seconds)
    log_line(f"end {job.job_id}")
    return job.job_id


@task
async def wait_for_file(job: JobContext, file: str) -> str:
    """Wait until `file` exists."""
    log_line(f"begin {job.job_id}")
    while not Path(file).exists():  # noqa: ASYNC110, ASYNC240 - another process makes it
        await asyncio.sleep(0.01)
    return "held"


@task
async def insert_row(session: AsyncSession) -> None:
    """Insert a row."""
    job_id = current_job().job_id
    log_line(f"begin {job_id}")
    await session.execute(text("INSERT INTO effect (job_id) VALUES (:job_id)"), {"job_id": job_id})


def kill_worker_once(moment: str) -> None:
    """Kill this process with SIGKILL, at the first call for this moment."""
    if f"kill at {moment}" not in Path(os.environ["TASK_LOG"]).read_text().splitlines():
        log_line(f"kill at {moment}")
        os.kill(os.getpid(), signal.SIGKILL)


def _claimed(moment: str) -> str:
    if moment.startswith("claimed") and "TASK_LOG" in os.environ:  # not in the process that enqueues
        kill_worker_once(moment)
    return moment


@task
async def kill_worker_at(session: AsyncSession, moment: Annotated[str, AfterValidator(_claimed)]) -> None:
    """Insert a row and kill the worker once: after the claim, in the body, or between COMMIT and finish."""
    await session.execute(text("INSERT INTO effect (job_id) VALUES (:job_id)"), {"job_id": moment})
    if moment.startswith("in the body"):
        kill_worker_once(moment)
    if moment.startswith("committed"):
        on_commit(lambda: kill_worker_once(moment))


@dataclass
class Moment:
    """One call of `kill_worker_of_chunk_at`."""

    name: str
    moment: str


@task(chunk=Chunk(size=10, wait=5.0))
async def kill_worker_of_chunk_at(session: AsyncSession, calls: list[Moment]) -> list[str]:
    """Insert a row for each call, and kill the worker once: in the body, or between COMMIT and finish."""
    await session.execute(
        text("INSERT INTO effect (job_id) VALUES (:job_id)"), [{"job_id": call.name} for call in calls]
    )
    if calls[0].moment == "in the body":
        kill_worker_once("in the body")
    if calls[0].moment == "committed":
        on_commit(lambda: kill_worker_once("committed"))
    return [call.name for call in calls]


@task
async def exit_worker(job: JobContext) -> None:
    """Exit the worker at once, with code 9."""
    log_line(f"begin {job.job_id}")
    os._exit(9)


@task(timeout=0.3)
async def block_event_loop(job: JobContext) -> None:
    """Block the event loop forever."""
    log_line(f"begin {job.job_id}")
    while True:
        time.sleep(0.01)  # noqa: ASYNC251 - the mistake under test


@task
def block_thread(job: JobContext) -> None:
    """Block a thread for a minute. Nothing can stop it."""
    log_line(f"begin {job.job_id}")
    time.sleep(60)


def _hold_gil_for(seconds: float) -> None:
    """Hold the interpreter lock as a C call may: no other thread runs for `seconds`."""
    ctypes.PyDLL(None).usleep(round(seconds * 1_000_000))


@task
async def hold_gil(job: JobContext, seconds: float) -> None:
    """Hold the interpreter lock for `seconds`."""
    log_line(f"begin {job.job_id}")
    _hold_gil_for(seconds)
    log_line(f"end {job.job_id}")


def _hold_gil_once_claimed(seconds: float) -> float:
    if "TASK_LOG" in os.environ:  # not in the process that enqueues
        log_line("gil held in validator")
        _hold_gil_for(seconds)
    return seconds


@task
async def hold_gil_in_validator(
    job: JobContext, seconds: Annotated[float, AfterValidator(_hold_gil_once_claimed)]
) -> None:
    """Hold the interpreter lock while the arguments are validated, before the body begins."""
    log_line(f"begin {job.job_id}")


@task(timeout=0.3)
async def hold_gil_forever(job: JobContext) -> None:
    """Hold the interpreter lock forever, in a regular expression."""
    log_line(f"begin {job.job_id}")
    re.match(r"(a+)+$", "a" * 60 + "b")


@task
async def fork_child(job: JobContext, seconds: float) -> None:
    """Fork a child that outlives the worker."""
    if os.fork() == 0:
        time.sleep(seconds)  # noqa: ASYNC251 - in the child, which runs nothing else
        os._exit(0)
    log_line(f"begin {job.job_id}")
    await asyncio.sleep(60)


@task(timeout=0.3)
def block_thread_until_file(job: JobContext, file: str) -> None:
    """Block a thread until `file` exists, past the timeout."""
    log_line(f"begin {job.job_id} {job.previous}")
    while not Path(file).exists():
        time.sleep(0.01)


@cron("0 0 29 2 *")
async def run_on_leap_day() -> None: ...
