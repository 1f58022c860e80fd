"""The tasks that the workers run, their registry, and the tables that the tasks write to.

The producer gives each job a `key`, which identifies its effect. `CHAOS_ONCE=false` declares the tasks with
``once=False``: their effects may be repeated.
"""

import asyncio
import ctypes
import os
import signal
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

import db
from tests.chaos.logs import AppendLog
from worker import Chunk, Retry, current_job, task

TABLES = """
    CREATE TABLE effect (
        number bigserial PRIMARY KEY,
        key text NOT NULL,      -- not unique, so that a duplicate effect shows
        job_id text NOT NULL,
        task text NOT NULL,
        at timestamptz NOT NULL DEFAULT clock_timestamp()
    );
    CREATE INDEX effect_key ON effect (key);
    CREATE TABLE marker (
        transaction text NOT NULL,
        keys text[] NOT NULL    -- of the jobs that the transaction has enqueued
    );
"""
INSERT_EFFECT = "INSERT INTO effect (key, job_id, task) VALUES (:key, :job_id, :task)"
INSERT_MARKER = "INSERT INTO marker (transaction, keys) VALUES (:transaction, :keys)"

ONCE = os.environ.get("CHAOS_ONCE", "true") == "true"
SLOW_QUEUE = "chaos:slow"
TASKS = tuple(
    f"tests.chaos.tasks.{name}"
    for name in (
        *("insert", "insert_in_thread", "insert_slowly", "insert_after_retries", "fail", "fan_out", "log_run"),
        *("insert_by_copy", "insert_in_repeatable_read", "log_run_read_only", "insert_large_payload", "hold_gil"),
        *("terminate_forked_child", "exit_in_child_task", "insert_in_chunk"),
    )
)


def child_key(parent: str, number: int) -> str:
    """The key of a job that `fan_out` enqueues."""
    return f"{parent}/{number}"


@task(once=ONCE)
async def insert(session: db.AsyncSession, key: str) -> str:
    """Leave one effect."""
    await _insert_effect(session, key)
    return key


@task(once=ONCE)
def insert_in_thread(session: db.Session, key: str) -> str:
    """Leave one effect, through a sync session."""
    session.execute(text(INSERT_EFFECT), _effect(key))
    return key


@task(once=ONCE, queue=SLOW_QUEUE)
async def insert_slowly(session: db.AsyncSession, key: str, seconds: float) -> str:
    """Leave one effect, in a transaction that stays open for `seconds`."""
    await _insert_effect(session, key)
    await asyncio.sleep(seconds)
    return key


@task(once=ONCE, queue=SLOW_QUEUE)
async def hold_gil(session: db.AsyncSession, key: str, seconds: float) -> str:
    """Leave one effect, and hold the interpreter lock as a C call may: no thread of the worker runs for `seconds`."""
    await _insert_effect(session, key)
    ctypes.PyDLL(None).usleep(round(seconds * 1_000_000))
    return key


@task(once=ONCE, max_tries=20)
async def insert_after_retries(session: db.AsyncSession, key: str, failures: int) -> str:
    """Leave one effect, after `failures` attempts that insert it and are retried."""
    await _insert_effect(session, key)
    if current_job().attempt <= failures:
        raise Retry(defer=0.1)
    return key


@task(once=ONCE)
async def fail(session: db.AsyncSession, key: str) -> str:
    """Leave no effect: insert one, then fail for good."""
    await _insert_effect(session, key)
    raise ValueError(f"{key} is to fail")


@task(once=ONCE)
async def fan_out(session: db.AsyncSession, key: str, children: int, fails: bool = False) -> str:
    """Leave one effect, and enqueue children that leave one each. With `fails` there are neither.

    One more child is enqueued in a savepoint that is rolled back.
    """
    await _insert_effect(session, key)
    await insert.enqueue_many([{"key": child_key(key, number)} for number in range(children)])
    savepoint = await session.begin_nested()
    await insert.enqueue(key=child_key(key, children))
    await savepoint.rollback()
    if fails:
        raise ValueError(f"{key} is to fail")
    return key


@task(once=ONCE)
async def log_run(key: str) -> str:
    """Leave a line in the run log instead of an effect. A job that runs twice leaves two."""
    started = time.monotonic()
    await asyncio.sleep(0.05)
    AppendLog.from_environment().append(key)
    return f"{time.monotonic() - started:.3f}"


@task(once=ONCE)
async def insert_by_copy(session: db.AsyncSession, key: str, fails: bool = False) -> str:
    """Leave one effect, by the driver's own COPY before any statement. With `fails` none."""
    effect = _effect(key)
    connection = await session.connection()
    driver: Any = (await connection.get_raw_connection()).driver_connection
    await driver.copy_records_to_table("effect", records=[tuple(effect.values())], columns=list(effect))
    if fails:
        raise ValueError(f"{key} is to fail")
    return key


@task(once=ONCE, queue=SLOW_QUEUE)
async def insert_in_repeatable_read(session: db.AsyncSession, key: str, seconds: float) -> str:
    """Leave one effect, in a REPEATABLE READ transaction that stays open for `seconds`."""
    await session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
    await _insert_effect(session, key)
    await asyncio.sleep(seconds)
    return key


@task(once=ONCE)
async def terminate_forked_child(session: db.AsyncSession, key: str) -> str:
    """Leave one effect, fork a process and end it with SIGTERM. Fail if the process ends in another way."""
    await _insert_effect(session, key)
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        time.sleep(2)  # noqa: ASYNC251 - another process, without a loop
        os._exit(0)
    os.kill(child, signal.SIGTERM)
    was_frozen = time.monotonic() - began > 1  # between the two, so that the process may have ended by itself
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    if os.waitstatus_to_exitcode(status) != -signal.SIGTERM and not was_frozen:
        raise ValueError(f"the child of {key} ended with {os.waitstatus_to_exitcode(status)}")
    return key


@task(once=ONCE)
async def exit_in_child_task(session: db.AsyncSession, key: str, fails: bool = False) -> str:
    """Leave one effect, beside a child task that raises SystemExit. With `fails` await that task, and leave none."""
    await _insert_effect(session, key)
    child = asyncio.create_task(_exit(key))
    await asyncio.wait({child})
    if fails:
        await child
    return key


@dataclass
class Effect:
    """One call of `insert_in_chunk`."""

    key: str
    fails: bool = False


@task(once=ONCE, chunk=Chunk(size=20, wait=0.3))
async def insert_in_chunk(session: db.AsyncSession, calls: list[Effect]) -> list[str]:
    """Leave one effect for each call. With `fails` in any of them none."""
    effects = [{"key": call.key, "job_id": "of a chunk", "task": "insert_in_chunk"} for call in calls]
    await session.execute(text(INSERT_EFFECT), effects)
    for call in calls:
        if call.fails:
            raise ValueError(f"{call.key} is to fail")
    return [call.key for call in calls]


async def _exit(key: str) -> None:
    raise SystemExit(f"{key} is to fail")


@task(once=ONCE)
async def log_run_read_only(session: db.AsyncSession, key: str) -> str:
    """Leave a line in the run log instead of an effect, from a READ ONLY transaction."""
    await session.execute(text("SET TRANSACTION READ ONLY"))
    await session.execute(text("SELECT count(*) FROM marker"))
    AppendLog.from_environment().append(key)
    return key


@task(once=ONCE)
async def insert_large_payload(session: db.AsyncSession, key: str, size: int, filler: str, fails: bool = False) -> str:
    """Leave one effect, with `size` bytes of arguments and of result. With `fails` none."""
    await _insert_effect(session, key)
    if fails:
        raise ValueError(f"{key} is to fail")
    assert len(filler) == size
    return filler


async def _insert_effect(session: db.AsyncSession, key: str) -> None:
    await session.execute(text(INSERT_EFFECT), _effect(key))


def _effect(key: str) -> dict[str, str]:
    job = current_job()
    return {"key": key, "job_id": job.job_id, "task": job.task}
