"""A real engine on a real Redis, in the test's own process: no database, no arq."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

import worker
from tests.waiting import eventually
from worker import Broker
from worker.config import Config
from worker.engine.after_job import AfterJob
from worker.engine.arq_options import NO_ARQ_OPTIONS, ArqOptions
from worker.engine.engine import Engine
from worker.engine.once import Once
from worker.engine.task_caller import Hook, TaskCaller
from worker.engine.traced_executor import make_executor
from worker.ledger import Ledger


async def _answers() -> None:
    """A database that is always well."""


class Worker:
    """One engine, and the queue that it has of its own.

    Args:
        url: Redis'.
        tasks: what it knows.
        settings: of `Config`; by default short leases and no log.
    """

    def __init__(
        self,
        url: str,
        *tasks: worker.Task[..., Any],
        ask_database: Callable[[], Awaitable[None]] = _answers,
        after_job_end: Hook | None = None,
        on_job_start: Hook | None = None,
        ledger: Ledger | None = None,
        arq: ArqOptions = NO_ARQ_OPTIONS,
        **settings: Any,
    ) -> None:
        defaults = {"lease": 1.0, "grace": 5.0, "log_jobs": "off", "id": "w", "concurrency": 10}
        self.config = Config.load(redis_url=url, **(defaults | settings))
        self.broker = Broker(url, name=self.config.queue)
        self._drained: asyncio.Task[bool] | None = None
        self._caller = TaskCaller(threads=4, on_job_start=on_job_start)
        by_name = {task.name: task for task in tasks}
        self.engine = Engine(
            self.config,
            by_name,
            self.broker,
            make_executor(self._caller, once=Once(ledger), retry_jobs=arq.retry_jobs),
            ask_database=ask_database,
            ledger=ledger,
            arq=arq if after_job_end is None else replace(arq, after_job=AfterJob(after_job_end, {})),
        )

    async def idle(self, timeout: float = 10) -> None:  # noqa: ASYNC109 - how long the test waits
        """Wait until nothing waits and nothing runs."""
        async with asyncio.timeout(timeout):
            await self.engine.idle()

    async def trusts_redis(self, timeout: float = 10) -> None:  # noqa: ASYNC109 - how long the test waits
        """Wait until the relay has read the pauses: before, nothing is claimed, as Redis may have lost one."""
        relay: Any = self.engine._parts["relay"]
        await eventually(lambda: not relay.guarded, timeout)

    async def drain(self) -> bool:
        """Drain the engine, once; whether all jobs have ended."""
        if self._drained is None:
            self._drained = asyncio.create_task(self.engine.drain())
        return await asyncio.shield(self._drained)

    async def stop(self) -> None:
        """Drain, and close what it had open."""
        try:
            await self.drain()
        finally:
            await self.broker.close()
            self._caller.close()


StartWorker = Callable[..., contextlib.AbstractAsyncContextManager[Worker]]
"""Runs a `Worker` of these tasks for the length of a block, on the run's Redis unless `url` says otherwise."""


@pytest.fixture
def start(redis_url: str, broker: Broker) -> StartWorker:
    """See `StartWorker`. The default queue is on the run's Redis, too."""

    @contextlib.asynccontextmanager
    async def started(*tasks: worker.Task[..., Any], url: str = redis_url, **settings: Any) -> AsyncIterator[Worker]:
        one = Worker(url, *tasks, **settings)
        one.engine.start()
        try:
            yield one
        finally:
            await one.stop()

    return started


class Seen:
    """Looks at what workers leave in Redis.

    Args:
        observer: a client that decodes.
    """

    def __init__(self, observer: Any) -> None:
        self._observer = observer

    def result(self, job_id: str) -> dict[str, Any]:
        """A kept result, as it is on the wire; empty where there is none."""
        raw = self._observer.get(f"arq:result:{job_id}")
        return json.loads(raw) if raw else {}

    def well(self, worker_id: str = "w") -> bool:
        """Whether a worker says that it can work."""
        return bool(self._observer.exists(f"arq:queue:health-check:{worker_id}"))

    def unfinished(self) -> list[str]:
        """The jobs whose claim is neither finished nor put back."""
        return [job for job, claim in self._observer.hgetall("arq:started").items() if not claim.startswith("0:")]

    def left(self) -> set[str]:
        """All keys but results, what workers say of themselves, and the epoch."""
        kept = (":result:", ":health-check", ":epoch", ":tasks", ":metrics:", ":served-queues")
        return {key for key in self._observer.keys("*") if not any(part in key for part in kept)}


@pytest.fixture
def seen(observer: Any) -> Seen:
    """Looks at the run's Redis."""
    return Seen(observer)
