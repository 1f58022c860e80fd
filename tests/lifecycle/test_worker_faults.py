"""Faults in a real worker: the rows that are left are those of the jobs that completed."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.commands import Command
from tests.conftest import StartPostgres
from tests.lifecycle import job_tasks
from tests.servers import Observer
from tests.waiting import eventually
from tests.worker.conftest import NOTES
from worker import Job, JobFailed, JobStatus

SOON = 20.0  # seconds that a worker may need to start, and to run a job


@pytest.mark.usefixtures("notes", "broker")
async def test_ten_faults_at_once_leave_no_transaction_open(
    worker_settings: dict[str, str], postgres: Observer, tmp_path: Path
) -> None:
    """Aborts, timeouts, killed backends and errors of every kind, all at once, in coroutines and threads: each job ends
    as it should, its rows are there or not, and while the worker lives no backend is idle in a transaction."""
    settings = worker_settings | {"WORKER_REGISTRY": "tests.lifecycle.job_tasks", "WORKER_CONCURRENCY": "16"}
    with Command("arq", "worker.Settings", folder=tmp_path, environment=settings) as arq:
        await arq.says("Starting worker")
        aborted = [await job_tasks.write_slowly.enqueue(f"aborted {number}", 30) for number in range(2)]
        aborted.append(await job_tasks.write_slowly_in_thread.enqueue("aborted in a thread", 1.5))
        late = [await job_tasks.exceed_timeout.enqueue() for _ in range(2)]
        failing = [await job_tasks.fail.enqueue(how) for how in ("built-in", "swallow", "deferred", "result", "exit")]
        killed = [await job_tasks.write_slowly.enqueue(f"killed {number}", 1) for number in range(2)]
        killed.append(await job_tasks.write_slowly_in_thread.enqueue("killed in a thread", 1))
        for job in (*aborted, *killed):
            await eventually(job.status, timeout=SOON, equals=JobStatus.in_progress)
        await eventually(lambda: rows_in_flight(postgres), timeout=SOON)
        await postgres.terminate_backends()
        outcomes = await asyncio.gather(
            *(job.abort(SOON) for job in aborted),
            *(ended(job) for job in (*late, *failing, *killed)),
        )
        assert outcomes == [
            *(True, True, True),
            *("TimeoutError", "TimeoutError"),
            *("KeyError", "JobFailed", "JobFailed", "TypeError", "JobFailed"),
            *(None, None, None),
        ]
        await eventually(postgres.idle_in_transaction, equals=0)
        assert await postgres.backends("active") == 0
        written = [row["words"] for row in await postgres.fetch("SELECT words FROM note ORDER BY words")]
        assert written == [
            *("killed 0 1", "killed 0 2", "killed 1 1", "killed 1 2", "killed in a thread 1", "killed in a thread 2")
        ]


async def rows_in_flight(postgres: Observer) -> bool:
    """Whether all jobs of `write_slowly` have begun their transactions."""
    return await postgres.idle_in_transaction() >= 6


async def ended(job: Job[Any]) -> str | None:
    """The name of the exception that ended a job, if one did."""
    try:
        await job.result(SOON)
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - what it is about
        return "JobFailed" if isinstance(error, JobFailed) else type(error).__name__
    return None


@pytest.mark.usefixtures("broker")
async def test_a_database_that_goes_away_fails_no_job(
    redis_url: str, own_postgres: StartPostgres, tmp_path: Path
) -> None:
    """Jobs that run when the server dies, and jobs enqueued while it is down, complete at their first try."""
    server = own_postgres()
    settings = {
        "DATABASE_URL": server.url,
        "REDIS_URL": redis_url,
        "WORKER_REGISTRY": "tests.lifecycle.job_tasks",
    }
    async with observing(server.url) as outside:
        await outside.execute(NOTES)
    with Command("arq", "worker.Settings", folder=tmp_path, environment=settings) as arq:
        await arq.says("Starting worker")
        jobs = [await job_tasks.write_slowly.enqueue(f"before {number}", 0.5) for number in range(5)]
        for job in jobs:
            await eventually(job.status, timeout=SOON, equals=JobStatus.in_progress)
        await asyncio.to_thread(server.kill)
        jobs += [await job_tasks.write_slowly.enqueue(f"during {number}", 0.1) for number in range(5)]
        await asyncio.sleep(2)
        await asyncio.to_thread(server.restart)
        await asyncio.gather(*(job.result(SOON) for job in jobs))
        assert [info.tries for job in jobs if (info := await job.info()) is not None] == [1] * 10
    async with observing(server.url) as outside:
        assert await outside.fetchval("SELECT count(*) FROM note") == 20


def observing(url: str) -> Any:
    """A connection from outside, for a block."""
    return asyncpg.create_pool(url.replace("+asyncpg", ""), min_size=1, max_size=1)


@pytest.mark.usefixtures("notes", "broker")
async def test_a_killed_worker_leaves_no_row_and_its_job_runs_again(
    worker_settings: dict[str, str], postgres: Observer, tmp_path: Path
) -> None:
    """After a kill -9 in the body the server rolls back. The next worker runs the job at its first try."""
    settings = worker_settings | {"WORKER_REGISTRY": "tests.lifecycle.job_tasks", "WORKER_LEASE": "1"}
    job = await job_tasks.write_slowly.enqueue("a", 2)
    with Command("arq", "worker.Settings", folder=tmp_path, environment=settings) as first:
        await eventually(postgres.idle_in_transaction, timeout=SOON, equals=1)
        first.send(signal.SIGKILL)
        await first.ends()
    await eventually(postgres.idle_in_transaction, equals=0)
    assert await postgres.fetchval("SELECT count(*) FROM note") == 0
    with Command("arq", "worker.Settings", folder=tmp_path, environment=settings):
        await job.result(SOON)
    info = await job.info()
    assert info is not None
    assert info.tries == 1
    assert await postgres.fetchval("SELECT count(*) FROM note") == 2
