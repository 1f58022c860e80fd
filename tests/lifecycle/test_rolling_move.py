"""A fleet of stock arq moves to Tandem and back, under load, in the order of docs/moving/arq-fleet.md."""

import asyncio
import itertools
import signal
import subprocess
import sys
import types
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from arq.connections import ArqRedis, create_pool

import db
from tests.commands import Command, bare_environment
from tests.lifecycle.conftest import Project
from tests.servers import Observer
from tests.waiting import eventually
from worker import Broker, deserialize, serialize, task
from worker.settings import redis_settings

Enqueue = Callable[[int], Awaitable[Any]]

PATIENCE = 60.0  # seconds for a result, also while workers start

WORK = """
    import asyncio, os
    from arq import Retry

    async def count(ctx, number):
        await asyncio.sleep(0.005)
        await ctx["redis"].rpush("ran", f"{os.environ['FLEET']} {number}")
        return number

    async def hand_on(ctx, number):
        await ctx["redis"].enqueue_job("count", number)
        return number

    async def hand_on_later(ctx, number):
        await ctx["redis"].enqueue_job("count", number, _job_id=f"child{number}", _defer_by=3600)

    async def retry_once(ctx, number):
        if ctx["job_try"] == 1:
            raise Retry(defer=0.05)
        return await count(ctx, number)

    async def wait(ctx, number):
        await ctx["redis"].rpush("began", f"{os.environ['FLEET']} {number}")
        while not await ctx["redis"].exists("go"):
            await asyncio.sleep(0.05)
        return await count(ctx, number)
"""

STOCK = """
    import os
    from arq.connections import RedisSettings
    from tasks.work import count, hand_on, hand_on_later, retry_once, wait

    class WorkerSettings:
        functions = [count, hand_on, retry_once, wait]
        redis_settings = RedisSettings.from_dsn(os.environ["REDIS_URL"])
        poll_delay = 0.05
        job_completion_wait = int(os.environ.get("WAIT", "20"))
"""

OURS = """
    from arq.worker import func
    from tasks.work import count, hand_on, hand_on_later, retry_once, wait

    TASKS = (func(count), func(hand_on), func(hand_on_later), func(retry_once), func(wait))
"""


@task(name="count")
async def count(ctx: dict[Any, Any], number: int) -> int:
    raise NotImplementedError("workers run it")


@pytest.fixture
def moving(project: Project) -> Project:
    """A project of arq's kind, and its registry."""
    project.write("tasks/work.py", WORK)
    project.write("tasks/registry.py", OURS)
    project.write("stock.py", STOCK)
    return project


@pytest.fixture
async def stock_client(redis_url: str) -> AsyncIterator[ArqRedis]:
    """The client of a producer that has not changed: it pickles."""
    client = await create_pool(redis_settings(redis_url))
    yield client
    await client.aclose()


@pytest.fixture
async def json_client(redis_url: str) -> AsyncIterator[ArqRedis]:
    """The client of a producer that has Tandem's codec."""
    client = await create_pool(redis_settings(redis_url), job_serializer=serialize, job_deserializer=deserialize)
    yield client
    await client.aclose()


def stock_worker(project: Project, **settings: str) -> Command:
    return project.command("arq", "stock.WorkerSettings", FLEET="stock", **settings)


def our_worker(project: Project, **settings: str) -> Command:
    return project.arq(FLEET="ours", WORKER_ACCEPT_PICKLE="true", **settings)


def retry_pickles(project: Project) -> subprocess.CompletedProcess[str]:
    """Run ``tandem jobs retry``, as it is installed, in the project's folder."""
    return subprocess.run(
        [Path(sys.executable).with_name("tandem"), "jobs", "retry", "--error", "pickle", "--yes"],
        cwd=project.folder,
        env=bare_environment(**project.settings, WORKER_ACCEPT_PICKLE="true"),
        capture_output=True,
        text=True,
        check=False,
    )


def began(observer: Any) -> Counter[str]:
    """How many jobs that wait each fleet has begun."""
    return Counter(line.split()[0] for line in observer.lrange("began", 0, -1))


class Load:
    """What producers have enqueued, and what has become of it.

    Args:
        observer: a Redis client that decodes.
    """

    def __init__(self, observer: Any) -> None:
        self._observer = observer
        self.numbers = itertools.count()
        self.enqueued: list[int] = []
        self.answers: dict[int, Any] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Callable[..., "Producer"]]:
        """Give the function that starts a producer; in the end stop all of them."""
        producers: list[Producer] = []

        def start(enqueue: Enqueue) -> Producer:
            producers.append(Producer(self, enqueue))
            return producers[-1]

        try:
            yield start
        finally:
            for producer in producers:
                producer.cancel()

    async def reaches(self, fleet: str, more: int = 100) -> None:
        """Wait until a fleet has run some more jobs."""
        goal = self.ran()[fleet] + more
        await eventually(lambda: self.ran()[fleet] >= goal, timeout=PATIENCE)

    def ran(self) -> Counter[str]:
        """How many jobs each fleet has run."""
        return Counter(line.split()[0] for line in self._observer.lrange("ran", 0, -1))

    def runs(self) -> Counter[int]:
        """How often each job has run."""
        return Counter(int(line.split()[1]) for line in self._observer.lrange("ran", 0, -1))


class Producer:
    """Enqueues some jobs every few milliseconds, and reads the result of each."""

    def __init__(self, load: Load, enqueue: Enqueue) -> None:
        self._load = load
        self._enqueue = enqueue
        self._stopping = asyncio.Event()
        self._reading: list[asyncio.Task[None]] = []
        self._producing = asyncio.create_task(self._produce())

    async def stop(self) -> None:
        """Enqueue no more, and wait for all results."""
        self._stopping.set()
        await self._producing
        await asyncio.gather(*self._reading)

    def cancel(self) -> None:
        for running in (self._producing, *self._reading):
            running.cancel()

    async def _produce(self) -> None:
        while not self._stopping.is_set():
            for number in itertools.islice(self._load.numbers, 3):
                job = await self._enqueue(number)
                self._load.enqueued.append(number)
                self._reading.append(asyncio.create_task(self._read(number, job)))
            await asyncio.sleep(0.02)

    async def _read(self, number: int, job: Any) -> None:
        try:
            self._load.answers[number] = await job.result(timeout=PATIENCE)
        except Exception as error:  # noqa: BLE001 - it is compared with what was to come
            self._load.answers[number] = error


@pytest.mark.usefixtures("database", "broker")
async def test_a_stock_fleet_moves_to_tandem_and_back_under_load_and_each_job_runs_once(
    moving: Project, stock_client: ArqRedis, json_client: ArqRedis, observer: Any, postgres: Observer
) -> None:
    """Every producer reads each of its results; nothing is left in the queue, pending or failed."""
    load = Load(observer)

    async def by_stock(number: int) -> Any:
        name = {0: "retry_once", 1: "hand_on"}.get(number % 5, "count")
        return await stock_client.enqueue_job(name, number)

    async def by_ours(number: int) -> Any:
        if number % 2:
            return await json_client.enqueue_job("count", number)
        async with db.scope():
            return await count.enqueue(number=number)

    async with load.running() as start:
        with stock_worker(moving) as stock:
            old = start(by_stock)
            await load.reaches("stock")
            with our_worker(moving) as ours:
                await load.reaches("ours")
                await load.reaches("stock")  # both work on one queue, for producers that have not changed
                stock.send(signal.SIGTERM)
                await stock.ends()
                new = start(by_ours)
                await load.reaches("ours")
                await old.stop()
                await load.reaches("ours")
                # And back.
                old = start(by_stock)
                await new.stop()  # no job in JSON is left that a stock worker could take
                with stock_worker(moving) as back:
                    await load.reaches("stock")
                    ours.send(signal.SIGTERM)
                    assert await ours.ends() == 0
                    await load.reaches("stock")
                    await old.stop()
                    await eventually(lambda: observer.zcard("arq:queue"), timeout=PATIENCE, equals=0)
                    back.send(signal.SIGTERM)
                    await back.ends()
    assert load.answers == {number: number for number in load.enqueued}
    assert load.runs() == Counter(load.enqueued)
    assert observer.zcard("arq:queue") == 0
    assert await postgres.fetchval("SELECT count(*) FROM tandem_jobs WHERE state <> 'done'") == 0


async def test_jobs_that_a_stock_worker_interrupts_when_it_stops_run_again_at_once(
    moving: Project, stock_client: ArqRedis, observer: Any
) -> None:
    """Beside Tandem's workers as beside stock ones: not only when the stock worker's lease of five minutes ends."""
    with stock_worker(moving, WAIT="0") as stock:
        jobs = [await stock_client.enqueue_job("wait", number) for number in range(30)]
        await eventually(lambda: began(observer)["stock"], timeout=PATIENCE, equals=10)  # arq's max_jobs
        with our_worker(moving):
            await eventually(lambda: began(observer)["ours"], timeout=PATIENCE, equals=20)
            stock.send(signal.SIGTERM)
            await stock.ends()
            observer.set("go", 1)
            assert [await job.result(timeout=PATIENCE) for job in jobs if job is not None] == list(range(30))
    assert began(observer) == {"stock": 10, "ours": 30}


async def test_a_job_that_a_task_enqueues_is_a_pickle_if_the_tasks_own_job_was(
    moving: Project, stock_client: ArqRedis, json_client: ArqRedis, broker: Broker
) -> None:
    """So a stock worker beside Tandem's can read it, and no pickle is written once the producers have changed."""
    for number, client in enumerate((stock_client, json_client)):
        await client.enqueue_job("hand_on_later", number)
    with our_worker(moving):
        await eventually(lambda: broker.redis.exists("arq:job:child0", "arq:job:child1"), timeout=PATIENCE, equals=2)
    assert [await broker.redis.getrange(f"arq:job:child{number}", 0, 0) for number in range(2)] == [b"\x80", b"{"]


async def test_pickles_that_came_too_early_run_after_one_command(
    project: Project, stock_client: ArqRedis, postgres: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with objects of the project's own classes, and with the command as it is installed."""
    project.write("orders.py", "class Order:\n    def __init__(self, number): self.number = number\n")
    project.write(
        "tasks/work.py", "import orders\n\nasync def ship(ctx, order):\n    return order.number, type(order).__name__"
    )
    project.write(
        "tasks/registry.py", "from arq.worker import func\nfrom tasks.work import ship\nTASKS = (func(ship),)"
    )
    orders = types.ModuleType("orders")
    exec((project.folder / "orders.py").read_text(), orders.__dict__)
    monkeypatch.setitem(sys.modules, "orders", orders)
    job = await stock_client.enqueue_job("ship", orders.Order(7))
    assert job is not None
    with project.arq("worker.Settings", "--burst") as early:
        assert await early.ends() == 0
        assert "pickled jobs in arq:queue (1 of the first 1 job): they fail, and the ledger keeps them" in early.output
    assert await postgres.fetchval("SELECT task FROM tandem_jobs WHERE state = 'failed'") == "ship"
    retried = await asyncio.to_thread(retry_pickles, project)
    assert (retried.stdout, retried.returncode) == ("1 retried\n", 0), retried.stderr
    with project.arq(WORKER_ACCEPT_PICKLE="true"):
        assert await job.result(timeout=PATIENCE) == (7, "Order")
