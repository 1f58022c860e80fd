"""oban-py (its free edition, PostgreSQL only), as its command line runs it: uvloop, orjson.

Its published benchmark has a queue of 20 jobs at once and a pool of 2 to 10 connections for its own use; here it is 32
jobs, as for all, and a pool of up to 32.
"""
# ruff: noqa: ARG001 - a job gets its argument, whether it has a use for it or not

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson  # type: ignore[import-not-found]  # it has an environment of its own, as have the next three
import uvloop
from oban import Oban, job  # type: ignore[import-not-found]
from oban.schema import install  # type: ignore[import-not-found]
from psycopg.types.json import set_json_dumps, set_json_loads
from sqlalchemy import make_url

from bench import contender_api
from bench.contender_api import CONCURRENCY, Producer, Rows

set_json_dumps(orjson.dumps)
set_json_loads(orjson.loads)


class _Tasks:
    """The tasks of this process."""

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

        functions = (noop, insert, wait, hold, ping)
        self.by_name: dict[str, Any] = {function.__name__: job()(function) for function in functions}


@asynccontextmanager
async def _pool() -> AsyncIterator[Any]:
    dsn = make_url(contender_api.database_url()).set(drivername="postgresql").render_as_string(hide_password=False)
    pool = await Oban.create_pool(dsn, min_size=2, max_size=CONCURRENCY)
    yield pool
    await pool.close()


async def _serve() -> None:
    _Tasks(Rows())
    async with _pool() as pool, Oban(pool=pool, queues={"default": CONCURRENCY}):
        await asyncio.Event().wait()


@asynccontextmanager
async def open_producer() -> AsyncIterator[Producer]:
    tasks = _Tasks(None)
    async with _pool() as pool:
        async with pool.connection() as connection:
            found = await connection.execute("SELECT to_regclass('oban_jobs')")
            is_installed = (await found.fetchone())[0] is not None
        if not is_installed:
            await install(pool)
        oban = Oban(pool=pool)

        async def one(task: str, argument: float) -> None:
            await oban.enqueue(tasks.by_name[task].new(argument))

        async def many(task: str, arguments: Sequence[int]) -> None:
            await oban.enqueue_many(tasks.by_name[task].new(argument) for argument in arguments)

        async def completed() -> int:
            async with pool.connection() as connection:
                counted = await connection.execute("SELECT count(*) FROM oban_jobs WHERE state = 'completed'")
                return int((await counted.fetchone())[0])

        yield Producer(one, many, completed)


if __name__ == "__main__":
    contender_api.main(lambda: uvloop.run(_serve()), open_producer)
