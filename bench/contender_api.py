"""The interface of all contenders' programs, Tandem's included: their commands, their jobs, their reports.

It imports the standard library, SQLAlchemy and uvloop alone, as each peer runs in an environment of its own. A program
has these commands, and reports on standard output, a word and a number a line:

1. ``work``: run one worker until it is killed. Its jobs report ``began`` (the first of them), ``held`` and ``latency``.
2. ``enqueue TASK COUNT``: queue many jobs as fast as the library can; ``enqueued`` is the seconds that it took.
3. ``one-by-one TASK COUNT``: the same, each awaited before the next.
4. ``ping COUNT PAUSE``: queue one job now and then, `PAUSE` seconds apart on average; it reports how long it waited.
5. ``completed``: how many jobs the library itself lists as ended well, with a result that is kept.

Times are those of the monotonic clock, which all processes of a machine share.
"""

import asyncio
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import uvloop
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

CONCURRENCY = 32
"""Jobs at once, connections to the database, and simultaneous calls where jobs cannot be queued in a batch."""
KEEP_RESULTS = 3600
"""Seconds."""
WAITING_JOB_SECONDS = 0.02  # seconds


class Table(DeclarativeBase):
    """The tables of the measurements."""


class Row(Table):
    """What a job adds."""

    __tablename__ = "bench_rows"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]


class Rows:
    """Adds rows, each in a transaction of its own, through a pool of `CONCURRENCY` connections."""

    def __init__(self) -> None:
        self._engine = create_async_engine(database_url(), pool_size=CONCURRENCY, max_overflow=0)
        self.sessions = async_sessionmaker(self._engine, expire_on_commit=False)

    async def add(self, number: int) -> None:
        async with self.sessions.begin() as session:
            session.add(Row(number=number))


def redis_url() -> str:
    return os.environ["REDIS_URL"]


def database_url() -> str:
    """A SQLAlchemy URL, for asyncpg."""
    return os.environ["DATABASE_URL"]


def report(what: str, value: float) -> None:
    """Report a value to the harness."""
    sys.stdout.write(f"{what} {value!r}\n")
    sys.stdout.flush()


_has_begun = False


def report_start() -> None:
    """Report the first job of this process. Each timed job calls it first."""
    global _has_begun  # noqa: PLW0603 - the cheapest way to do something once, and every job does it
    if not _has_begun:
        _has_begun = True
        report("began", time.monotonic())


async def run_waiting_job() -> None:
    """Run the body of a job that waits for something else."""
    report_start()
    await asyncio.sleep(WAITING_JOB_SECONDS)


async def run_held_job() -> None:
    """Run the body of a job that takes as long as `BENCH_HOLD` says."""
    report("held", time.monotonic())
    await asyncio.sleep(float(os.environ.get("BENCH_HOLD", "0")))


def report_latency(sent_at: float) -> None:
    """Report the latency of a job that was enqueued at `sent_at`."""
    report("latency", time.monotonic() - sent_at)


async def gather_limited(calls: Iterable[Awaitable[object]]) -> None:
    """Await all, `CONCURRENCY` at a time, as the published benchmarks enqueue where a library has no batch."""
    slots = asyncio.Semaphore(CONCURRENCY)

    async def in_slot(call: Awaitable[object]) -> None:
        async with slots:
            await call

    await asyncio.gather(*map(in_slot, calls))


@dataclass(frozen=True)
class Producer:
    """How a library enqueues jobs."""

    enqueue_one: Callable[[str, float], Awaitable[object]]
    """One job: its task and its argument."""
    enqueue_many: Callable[[str, Sequence[int]], Awaitable[object]]
    """Many jobs of one task, an argument each, as fast as the library can."""
    count_completed: Callable[[], Awaitable[int]]
    """How many jobs have ended well."""


OpenProducer = Callable[[], AbstractAsyncContextManager[Producer]]


def main(work: Callable[[], None], open_producer: OpenProducer) -> None:
    """Run the command that the program was started with."""
    command, *arguments = sys.argv[1:]
    if command == "work":
        work()
    else:
        uvloop.run(_produce(open_producer, command, arguments))


async def _produce(open_producer: OpenProducer, command: str, arguments: list[str]) -> None:
    async with open_producer() as producer:
        match command, *arguments:
            case "enqueue", task, count:
                async with _timed():
                    await producer.enqueue_many(task, range(int(count)))
            case "one-by-one", task, count:
                async with _timed():
                    for number in range(int(count)):
                        await producer.enqueue_one(task, number)
            case "ping", count, pause:
                await _ping(producer, int(count), float(pause))
            case ["completed"]:
                report("completed", await producer.count_completed())
            case _:
                raise SystemExit(f"not a command: {command} {' '.join(arguments)}")


@asynccontextmanager
async def _timed() -> AsyncIterator[None]:
    started = time.monotonic()
    yield
    report("enqueued", time.monotonic() - started)


async def _ping(producer: Producer, count: int, pause: float) -> None:
    """The pauses vary, so that no worker's poll falls into step with them."""
    for _ in range(count):
        await asyncio.sleep(random.uniform(0.0, 2 * pause))  # noqa: S311 - not a secret
        await producer.enqueue_one("ping", time.monotonic())
