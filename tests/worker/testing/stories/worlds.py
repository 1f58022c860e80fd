"""The two worlds of a story: the kit, and a worker on a real Redis and a real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import db.testing
from tests.worker.testing.stories.story_tasks import TASKS
from worker import Broker, Job, testing
from worker.config import Config
from worker.context import from_milliseconds
from worker.engine.engine import Engine
from worker.engine.executor import Executor
from worker.engine.once import Once
from worker.engine.task_caller import TaskCaller
from worker.ledger import Ledger
from worker.message import Message
from worker.new_job import NewJob

RESOURCES = {"http": "a client"}
_SOON = 20.0  # seconds


class World(Protocol):
    """Where a story happens."""

    async def run(self) -> None:
        """Run all jobs that are due, and those that they enqueue, until none is due or waits for a retry."""

    async def look(self) -> None:
        """Let the worker run what is due now."""

    async def deliver_again(self, job_id: str) -> None:
        """Run a job that has ended once more, as when Redis has lost its end."""


class KitWorld:
    """The testing kit, in the savepoints of one transaction."""

    def __init__(self, jobs: testing.Jobs) -> None:
        self._jobs = jobs

    async def run(self) -> None:
        await self._jobs.advance(seconds=30, raises=False)

    async def look(self) -> None:
        await self._jobs.drain()

    async def deliver_again(self, job_id: str) -> None:
        (job,) = [new for (known, _), new in self._jobs.broker.known.items() if known == job_id]
        await self._jobs.redeliver(Job(job.id, enqueued_at=from_milliseconds(job.enqueued_at)))


class RealWorld:
    """A worker in this process, on real servers."""

    def __init__(self, engine: Engine, broker: Broker) -> None:
        self._engine = engine
        self._broker = broker

    async def run(self) -> None:
        async with asyncio.timeout(_SOON):
            await self._engine.idle()

    async def look(self) -> None:
        await asyncio.sleep(0.5)  # a worker that ran the job too early would do so at its next claim

    async def deliver_again(self, job_id: str) -> None:
        row = await Ledger().latest(job_id)  # this world's worker keeps the arguments of done jobs
        assert row is not None
        message = Message.decode(job_id, row["payload"])
        new = NewJob(job_id, row["payload"], message.task, row["queue"], message.enqueued_at)
        await self._broker.publish([new])
        await self.run()


@asynccontextmanager
async def kit_world(database: db.Database[Any]) -> AsyncIterator[World]:
    """A world of the kit."""
    async with db.testing.savepoints(database), testing.jobs(*TASKS, registry="tests.worker.testing.registry") as jobs:
        jobs.resources.update(RESOURCES)
        yield KitWorld(jobs)


@asynccontextmanager
async def real_world(redis_url: str) -> AsyncIterator[World]:
    """A world with a real worker. The default broker must be on the same Redis."""
    config = Config.load(
        redis_url=redis_url, lease=2.0, grace=5.0, log_jobs="off", id="w", concurrency=1, queues="arq:queue,other"
    )
    broker, caller, ledger = Broker(redis_url), TaskCaller(threads=4), Ledger(keep_arguments=True)
    executor = Executor(caller, resources=RESOURCES, once=Once(ledger))
    by_name = {task.name: task for task in TASKS}
    engine = Engine(config, by_name, broker, executor, ask_database=_answers, ledger=ledger)
    engine.start()
    try:
        yield RealWorld(engine, broker)
    finally:
        await engine.drain()
        caller.close()
        await broker.close()


async def _answers() -> None:
    """A database that is always well."""
