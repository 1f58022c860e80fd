"""taskiq on Redis streams, with the settings of streaQ's published benchmark.

They are ``--max-async-tasks 32 --max-prefetch 32``, and a Redis result backend; results are kept for an hour here, not
for a second. Parameters are validated, as taskiq does unless told otherwise.
"""
# ruff: noqa: ARG001 - a job gets its argument, whether it has a use for it or not

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from taskiq.receiver import Receiver  # type: ignore[import-not-found]  # it has an environment of its own
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker  # type: ignore[import-not-found]

from bench import contender_api
from bench.contender_api import CONCURRENCY, KEEP_RESULTS, Producer, Rows, gather_limited

_RESULTS = "result"


class _Tasks:
    """The tasks of one broker."""

    def __init__(self, rows: Rows | None) -> None:
        async def noop(number: int) -> None:
            contender_api.report_start()

        async def insert(number: int) -> None:
            contender_api.report_start()
            assert rows is not None  # noqa: S101 - a worker has them
            await rows.add(number)

        async def wait(number: int) -> None:
            await contender_api.run_waiting_job()

        async def hold(number: int) -> None:
            await contender_api.run_held_job()

        async def ping(number: float) -> None:
            contender_api.report_latency(number)

        url = contender_api.redis_url()
        self.results = RedisAsyncResultBackend(url, result_ex_time=KEEP_RESULTS, prefix_str=_RESULTS)
        self.broker = RedisStreamBroker(url).with_result_backend(self.results)
        functions = (noop, insert, wait, hold, ping)
        self.by_name: dict[str, Any] = {
            function.__name__: self.broker.register_task(function, task_name=function.__name__)
            for function in functions
        }


async def _serve() -> None:
    broker = _Tasks(Rows()).broker
    broker.is_worker_process = True
    with ThreadPoolExecutor() as threads:
        receiver = Receiver(broker, threads, max_async_tasks=CONCURRENCY, max_prefetch=CONCURRENCY)
        await receiver.listen(asyncio.Event())


@asynccontextmanager
async def open_producer() -> AsyncIterator[Producer]:
    tasks = _Tasks(None)
    await tasks.broker.startup()

    async def one(task: str, argument: float) -> None:
        await tasks.by_name[task].kiq(argument)

    async def many(task: str, arguments: Sequence[int]) -> None:
        await gather_limited(one(task, argument) for argument in arguments)

    async def completed() -> int:
        """It lists no results, so their keys are looked for."""
        from redis.asyncio import Redis  # noqa: PLC0415 - for this alone

        async with Redis(connection_pool=tasks.results.redis_pool) as redis:
            ids = [key.decode().partition(":")[2] async for key in redis.scan_iter(f"{_RESULTS}:*", count=1000)]
        results = [await tasks.results.get_result(task_id) for task_id in ids]
        return sum(not result.is_err for result in results)

    yield Producer(one, many, completed)
    await tasks.broker.shutdown()


if __name__ == "__main__":
    contender_api.main(lambda: uvloop.run(_serve()), open_producer)
