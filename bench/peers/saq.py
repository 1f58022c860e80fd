"""SAQ on Redis, with the settings of streaQ's published benchmark: ``concurrency=32, dequeue_timeout=1``."""
# ruff: noqa: ARG001 - a job gets its argument, whether it has a use for it or not

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from saq import Queue, Worker  # type: ignore[import-not-found]  # it has an environment of its own
from saq.job import Status  # type: ignore[import-not-found]

from bench import contender_api
from bench.contender_api import CONCURRENCY, KEEP_RESULTS, Producer, Rows, gather_limited


async def noop(_ctx: dict[str, Any], *, number: int) -> None:
    contender_api.report_start()


async def insert(ctx: dict[str, Any], *, number: int) -> None:
    contender_api.report_start()
    await ctx["rows"].add(number)


async def wait(_ctx: dict[str, Any], *, number: int) -> None:
    await contender_api.run_waiting_job()


async def hold(_ctx: dict[str, Any], *, number: int) -> None:
    await contender_api.run_held_job()


async def ping(_ctx: dict[str, Any], *, number: float) -> None:
    contender_api.report_latency(number)


async def _serve() -> None:
    async def startup(ctx: dict[str, Any]) -> None:
        ctx["rows"] = Rows()

    queue = Queue.from_url(contender_api.redis_url())
    functions = [noop, insert, wait, hold, ping]
    worker = Worker(queue, functions, concurrency=CONCURRENCY, dequeue_timeout=1, startup=startup)
    await queue.connect()
    # A worker looks for lost jobs when it starts, and takes some that it has just begun for such. It does not look
    # again within a minute.
    await queue.sweep()
    await worker.start()


@asynccontextmanager
async def open_producer() -> AsyncIterator[Producer]:
    queue = Queue.from_url(contender_api.redis_url())
    await queue.connect()

    async def one(task: str, argument: float) -> None:
        # A job whose worker died is run again only if it has a second try.
        await queue.enqueue(task, number=argument, ttl=KEEP_RESULTS, retries=2)

    async def many(task: str, arguments: Sequence[int]) -> None:
        await gather_limited(one(task, argument) for argument in arguments)

    async def completed() -> int:
        return len([job async for job in queue.iter_jobs(statuses=[Status.COMPLETE], batch_size=1000)])

    yield Producer(one, many, completed)
    await queue.disconnect()


if __name__ == "__main__":
    contender_api.main(lambda: uvloop.run(_serve()), open_producer)
