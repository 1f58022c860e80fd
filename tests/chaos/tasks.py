"""What the workers run: the tasks, and their registry.

Each job has a `key` of its producer's making, by which its effect is known. `CHAOS_ONCE=false` makes its tasks ones
whose effects may happen again.
"""

import asyncio
import ctypes
import os
import signal
import time
from typing import Any

from sqlalchemy import text

import db
from tests.chaos.diary import Diary
from tests.chaos.schema import ADD_EFFECT
from worker import Retry, current_job, task

ONCE = os.environ.get("CHAOS_ONCE", "true") == "true"
SLOW_QUEUE = "chaos:slow"
TASKS = tuple(
    f"tests.chaos.tasks.{name}"
    for name in (
        *("insert", "insert_in_thread", "dawdle", "falter", "fail", "fan_out", "think"),
        *("copy_first", "see_one_snapshot", "only_read", "carry", "keep_interpreter"),
        *("terminate_a_child", "exit_in_a_child"),
    )
)


def child_key(parent: str, number: int) -> str:
    """The key of a child of `fan_out`."""
    return f"{parent}/{number}"


@task(once=ONCE)
async def insert(session: db.AsyncSession, key: str) -> str:
    """One effect."""
    await _add_effect(session, key)
    return key


@task(once=ONCE)
def insert_in_thread(session: db.Session, key: str) -> str:
    """One effect, of a sync session."""
    session.execute(text(ADD_EFFECT), _effect(key))
    return key


@task(once=ONCE, queue=SLOW_QUEUE)
async def dawdle(session: db.AsyncSession, key: str, seconds: float) -> str:
    """One effect, in a transaction that stays open for a while."""
    await _add_effect(session, key)
    await asyncio.sleep(seconds)
    return key


@task(once=ONCE, queue=SLOW_QUEUE)
async def keep_interpreter(session: db.AsyncSession, key: str, seconds: float) -> str:
    """One effect, of a job that lets no thread of its worker run for a while, as a C call may."""
    await _add_effect(session, key)
    ctypes.PyDLL(None).usleep(round(seconds * 1_000_000))
    return key


@task(once=ONCE, max_tries=20)
async def falter(session: db.AsyncSession, key: str, failures: int) -> str:
    """One effect, once it has failed so often after writing it."""
    await _add_effect(session, key)
    if current_job().attempt <= failures:
        raise Retry(defer=0.1)
    return key


@task(once=ONCE)
async def fail(session: db.AsyncSession, key: str) -> str:
    """No effect: it fails for good after writing it."""
    await _add_effect(session, key)
    raise ValueError(f"{key} is to fail")


@task(once=ONCE)
async def fan_out(session: db.AsyncSession, key: str, children: int, fails: bool = False) -> str:
    """One effect, and one of each child; with `fails` none of all of them. A last child goes with its savepoint."""
    await _add_effect(session, key)
    await insert.enqueue_many([{"key": child_key(key, number)} for number in range(children)])
    savepoint = await session.begin_nested()
    await insert.enqueue(key=child_key(key, children))
    await savepoint.rollback()
    if fails:
        raise ValueError(f"{key} is to fail")
    return key


@task(once=ONCE)
async def think(key: str) -> str:
    """No use of the database: a line in a file, which nothing keeps from being written twice."""
    started = time.monotonic()
    await asyncio.sleep(0.05)
    Diary.of_environment().note(key)
    return f"{time.monotonic() - started:.3f}"


@task(once=ONCE)
async def copy_first(session: db.AsyncSession, key: str, fails: bool = False) -> str:
    """One effect, by the driver's own COPY before any statement; with `fails` none."""
    effect = _effect(key)
    connection = await session.connection()
    driver: Any = (await connection.get_raw_connection()).driver_connection
    await driver.copy_records_to_table("effect", records=[tuple(effect.values())], columns=list(effect))
    if fails:
        raise ValueError(f"{key} is to fail")
    return key


@task(once=ONCE, queue=SLOW_QUEUE)
async def see_one_snapshot(session: db.AsyncSession, key: str, seconds: float) -> str:
    """One effect, in a transaction that sees nothing of what is committed while it lasts."""
    await session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
    await _add_effect(session, key)
    await asyncio.sleep(seconds)
    return key


@task(once=ONCE)
async def terminate_a_child(session: db.AsyncSession, key: str) -> str:
    """One effect, of a job that forks a process and ends it by SIGTERM. It fails if the process does not end so."""
    await _add_effect(session, key)
    child = os.fork()
    if child == 0:
        time.sleep(2)  # noqa: ASYNC251 - another process, without a loop
        os._exit(0)
    os.kill(child, signal.SIGTERM)
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    if os.waitstatus_to_exitcode(status) != -signal.SIGTERM:
        raise ValueError(f"the child of {key} ended with {os.waitstatus_to_exitcode(status)}")
    return key


@task(once=ONCE)
async def exit_in_a_child(session: db.AsyncSession, key: str, fails: bool = False) -> str:
    """One effect, beside a task that asks to end the process; with `fails` none, as that task is waited for."""
    await _add_effect(session, key)
    child = asyncio.create_task(_exit(key))
    await asyncio.wait({child})
    if fails:
        await child
    return key


async def _exit(key: str) -> None:
    raise SystemExit(f"{key} is to fail")


@task(once=ONCE)
async def only_read(session: db.AsyncSession, key: str) -> str:
    """No effect, in a transaction that can have none: a line in a file, as `think`."""
    await session.execute(text("SET TRANSACTION READ ONLY"))
    await session.execute(text("SELECT count(*) FROM marker"))
    Diary.of_environment().note(key)
    return key


@task(once=ONCE)
async def carry(session: db.AsyncSession, key: str, size: int, filler: str, fails: bool = False) -> str:
    """One effect, of a job with `size` bytes of arguments and of result; with `fails` none."""
    await _add_effect(session, key)
    if fails:
        raise ValueError(f"{key} is to fail")
    assert len(filler) == size
    return filler


async def _add_effect(session: db.AsyncSession, key: str) -> None:
    await session.execute(text(ADD_EFFECT), _effect(key))


def _effect(key: str) -> dict[str, str]:
    job = current_job()
    return {"key": key, "job_id": job.job_id, "task": job.task}
