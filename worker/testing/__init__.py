"""The testing kit: tests of code that enqueues, and of tasks, without a worker and without Redis.

As a pytest fixture::

    pytest_plugins = ["db.testing", "worker.testing"]  # conftest.py


    async def test_order(jobs, savepoint_database, client):
        await client.post("/orders/7")
        await jobs.assert_enqueued(ship, order_id=7)
        await jobs.drain()

Without pytest::

    async with worker.testing.jobs() as jobs: ...

1. Everything but Redis is real: validation, JSON both ways, rows in the test's own transaction, the executor, retries.
2. The queue is in memory (`MemoryBroker`), and takes the place of the default broker for the length of a test.
3. A job of a transaction is there once its row is there. A test's own transaction is never committed, so the kit reads
   the rows itself (`Collector`).
4. Nothing runs by itself. `Jobs.drain` and `Jobs.advance` run what is due, one job after the other (`JobRunner`).

Only tests import it. It may import everything that a worker does, and no other package may import it.
"""

import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from worker.broker.broker import given_default_broker, set_default_broker
from worker.config import Config
from worker.task import Task
from worker.testing.blocking import BlockingJobs, Portal, blocking
from worker.testing.faults import CrashPoint
from worker.testing.jobs import Jobs
from worker.testing.records import EnqueuedJob, Run, RunOutcome, Tally

__all__ = [
    "BlockingJobs",
    "CrashPoint",
    "EnqueuedJob",
    "Jobs",
    "Portal",
    "Run",
    "RunOutcome",
    "Tally",
    "blocking",
    "jobs",
]


@asynccontextmanager
async def jobs(*tasks: Task[..., Any], **settings: Any) -> AsyncIterator[Jobs]:
    """A block in which jobs are enqueued into memory, and run when the test says so.

    ::

        async with worker.testing.jobs() as jobs:
            await checkout(order_id=7)
            await jobs.drain()

    Args:
        tasks: tasks that the registry does not list. Tasks that are passed to a method need not be named.
        settings: fields of `worker.config.Config` that differ from the environment's, as ``max_tries=2``.
    """
    earlier = given_default_broker()
    kit = Jobs(Config.load(**settings), tasks)
    set_default_broker(kit.broker)
    try:
        yield kit
    finally:
        set_default_broker(earlier)
        kit.close()


async def _jobs_of_a_test(job_tasks: Iterable[Task[..., Any]], job_settings: dict[str, Any]) -> AsyncIterator[Jobs]:
    """The jobs of a test. See `worker.testing.Jobs`."""
    async with jobs(*job_tasks, **job_settings) as kit:
        yield kit


def _no_tasks() -> Iterable[Task[..., Any]]:
    """The tasks that the registry does not list. Define a fixture of this name for some."""
    return ()


def _no_settings() -> dict[str, Any]:
    """The settings that differ from the environment's. Define a fixture of this name for some."""
    return {}


if "pytest" in sys.modules:
    # pytest-asyncio's strict mode needs its own decorator on a fixture. anyio takes both.
    _async_fixture = import_module("pytest_asyncio" if find_spec("pytest_asyncio") else "pytest").fixture

    # The function `jobs` has the fixture's name, so the fixture is kept under another one.
    jobs_fixture = _async_fixture(name="jobs")(_jobs_of_a_test)
    job_tasks = import_module("pytest").fixture(name="job_tasks")(_no_tasks)
    job_settings = import_module("pytest").fixture(name="job_settings")(_no_settings)
