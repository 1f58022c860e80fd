"""streaQ, with the settings of its published benchmark: ``concurrency=32``, on asyncio and uvloop."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from streaq import Worker  # type: ignore[import-not-found]  # it has an environment of its own

from bench import contender_api
from bench.contender_api import CONCURRENCY, KEEP_RESULTS, Producer, Rows


class _Tasks:
    """The tasks of one worker."""

    def __init__(self, rows: Rows | None) -> None:
        async def noop(_number: int) -> None:
            contender_api.report_start()

        async def insert(number: int) -> None:
            contender_api.report_start()
            assert rows is not None  # noqa: S101 - a worker has them
            await rows.add(number)

        async def wait(_number: int) -> None:
            await contender_api.run_waiting_job()

        async def hold(_number: int) -> None:
            await contender_api.run_held_job()

        async def ping(sent_at: float) -> None:
            contender_api.report_latency(sent_at)

        self.worker = Worker(redis_url=contender_api.redis_url(), concurrency=CONCURRENCY)
        functions = (noop, insert, wait, hold, ping)
        self.by_name: dict[str, Any] = {
            function.__name__: self.worker.task(name=function.__name__, ttl=KEEP_RESULTS)(function)
            for function in functions
        }


async def _serve() -> None:
    await _Tasks(Rows()).worker.run_async()


@asynccontextmanager
async def open_producer() -> AsyncIterator[Producer]:
    tasks = _Tasks(None)
    worker = tasks.worker

    async def one(task: str, argument: float) -> None:
        await tasks.by_name[task].enqueue(argument)

    async def many(task: str, arguments: Sequence[int]) -> None:
        await worker.enqueue_many([tasks.by_name[task].enqueue(argument) for argument in arguments])

    async def completed() -> int:
        results = await worker.redis.zcard(f"{worker.prefix}:index:results")
        done = await worker.get_tasks_by_status("done", limit=results)
        return sum(result.success for result in done)

    async with worker:
        yield Producer(one, many, completed)


if __name__ == "__main__":
    contender_api.main(lambda: uvloop.run(_serve()), open_producer)
