"""Tandem, as its users run it: ``arq worker.Settings``."""

import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from bench import contender_api
from bench.contender_api import CONCURRENCY, KEEP_RESULTS, Producer
from bench.ours import tasks
from worker import Broker, Task, deserialize

_NAMES = ("noop", "insert", "insert_at_least_once", "insert_in_chunks", "wait", "hold", "ping")
_TASKS: dict[str, "Task[[float], None]"] = {name: getattr(tasks, name) for name in _NAMES}
_CHUNK = 20_000  # jobs; more of them at once only cost this program memory
_SETTINGS = {
    "WORKER_REGISTRY": "bench.ours.registry",
    "WORKER_CONCURRENCY": str(CONCURRENCY),
    "WORKER_POOL_SIZE": str(CONCURRENCY),
    "WORKER_KEEP_RESULT": str(KEEP_RESULTS),
    "WORKER_LOG_JOBS": "failed",
}


def work() -> None:
    """Become the worker. What the harness has set already comes first."""
    os.execve(  # noqa: S606 - our own command
        sys.executable, [sys.executable, "-m", "arq", "worker.Settings"], {**_SETTINGS, **os.environ}
    )


@asynccontextmanager
async def open_producer() -> AsyncIterator[Producer]:
    broker = Broker(contender_api.redis_url(), default=True)
    await broker.ping()

    async def one(task: str, argument: float) -> None:
        await _TASKS[task].enqueue(argument)

    async def many(task: str, arguments: Sequence[int]) -> None:
        for start in range(0, len(arguments), _CHUNK):
            chunk = arguments[start : start + _CHUNK]
            await _TASKS[task].enqueue_many({"number": number} for number in chunk)

    async def completed() -> int:
        keys = [key async for key in broker.redis.scan_iter("arq:result:*", count=1000)]
        ended_well = 0
        for start in range(0, len(keys), 1000):
            results = await broker.redis.mget(keys[start : start + 1000])
            ended_well += sum(bool(raw and deserialize(raw)["s"]) for raw in results)
        return ended_well

    yield Producer(one, many, completed)
    await broker.close()


if __name__ == "__main__":
    contender_api.main(work, open_producer)
