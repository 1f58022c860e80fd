"""Stock arq, with the settings of streaQ's published benchmark: ``max_jobs=32``, all else as it comes."""
# ruff: noqa: ARG001 - a job gets its argument, whether it has a use for it or not

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from arq.connections import RedisSettings, create_pool
from arq.worker import Worker

from bench import contender_api
from bench.contender_api import CONCURRENCY, KEEP_RESULTS, Producer, Rows, gather_limited


async def noop(_ctx: dict[Any, Any], number: int) -> None:
    contender_api.report_start()


async def insert(ctx: dict[Any, Any], number: int) -> None:
    contender_api.report_start()
    await ctx["rows"].add(number)


async def wait(_ctx: dict[Any, Any], number: int) -> None:
    await contender_api.run_waiting_job()


async def hold(_ctx: dict[Any, Any], number: int) -> None:
    await contender_api.run_held_job()


async def ping(_ctx: dict[Any, Any], number: float) -> None:
    contender_api.report_latency(number)


async def _serve() -> None:
    functions: list[Any] = [noop, insert, wait, hold, ping]  # arq's type wants the first to be called ctx
    worker = Worker(
        functions=functions,
        redis_settings=RedisSettings.from_dsn(contender_api.redis_url()),
        max_jobs=CONCURRENCY,
        keep_result=KEEP_RESULTS,
        ctx={"rows": Rows()},
    )
    await worker.async_run()


@asynccontextmanager
async def open_producer() -> AsyncIterator[Producer]:
    pool = await create_pool(RedisSettings.from_dsn(contender_api.redis_url()))

    async def one(task: str, argument: float) -> None:
        await pool.enqueue_job(task, number=argument)

    async def many(task: str, arguments: Sequence[int]) -> None:
        await gather_limited(pool.enqueue_job(task, number=argument) for argument in arguments)

    async def completed() -> int:
        return sum(result.success for result in await pool.all_job_results())

    yield Producer(one, many, completed)
    await pool.aclose()


if __name__ == "__main__":
    contender_api.main(lambda: uvloop.run(_serve()), open_producer)
