"""A default database and a default queue on real servers, and an executor to run tasks with, without any worker."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from functools import cached_property
from typing import Any, Protocol

import pytest
import redis
from hypothesis import settings
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import db
import worker
from db.database import Database
from tests.servers import Observer
from worker.broker.records import Claim, now_ms
from worker.config import Config
from worker.engine.execution import Execution
from worker.engine.executor import Executor
from worker.engine.limits import Limits
from worker.engine.once import Once
from worker.engine.outcome import Outcome
from worker.engine.task_caller import Hook, TaskCaller
from worker.ledger import Ledger, table
from worker.message import Message, encode

# Examples do not wait for anything, so a slow example means a slow machine, not a failure.
settings.register_profile("tandem", deadline=None)
settings.load_profile("tandem")

NOTES = """
    CREATE TABLE note (id serial PRIMARY KEY, words text UNIQUE);
    CREATE TABLE reply (note_id int REFERENCES note DEFERRABLE INITIALLY DEFERRED);
"""


class Base(DeclarativeBase):
    pass


class Note(Base):
    """A row of `note`."""

    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    words: Mapped[str]


class Count(Protocol):
    """Counts the committed rows of `note`."""

    async def __call__(self) -> int: ...


class Execute(Protocol):
    """Runs one job of a task as a worker does, with its arguments and its tries so far; returns the outcome."""

    async def __call__(self, task: worker.Task[..., Any], /, *args: Any, tries: int = 0, **kwargs: Any) -> Outcome: ...


@pytest.fixture(autouse=True)
def _no_default_left() -> Any:
    """Reset the default database and the default queue after each test."""
    yield
    db.set_default_database(None)
    worker.set_default_broker(None)


@pytest.fixture
async def database(database_url: str, postgres: Observer) -> AsyncIterator[Database[db.AsyncSession]]:
    """The default database, as a worker opens it, with the ledger and the tables `note` and `reply`."""
    await postgres.execute(NOTES)
    await create_ledger(database_url)
    database = Database(database_url, default=True, pre_ping=False)
    yield database
    await database.dispose()
    assert await postgres.backends("active") == 0


async def create_ledger(url: str) -> None:
    """Create the ledger's table, and leave no connection behind."""
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(table().metadata.create_all)
    await engine.dispose()


@pytest.fixture
def rows(postgres: Observer) -> Count:
    """Counts the rows of `note` through a connection of its own."""

    async def count() -> int:
        return int(await postgres.fetchval("SELECT count(*) FROM note"))

    return count


class RoundTrips:
    """Counts the requests that other clients have sent to Redis since this was made."""

    def __init__(self, observer: redis.Redis) -> None:
        self._observer = observer
        self._before = self._count()

    def __call__(self) -> int:
        return self._count() - self._before

    def _count(self) -> int:
        # Redis counts the commands inside of a script too, so only commands that are sent are counted.
        stats: Any = self._observer.info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval", "exec", "ping"))


class ExecutorHarness:
    """An executor of its own for a test."""

    def __init__(self, arq_context: Mapping[Any, Any] | None = None, **hooks: Hook) -> None:
        self.caller = TaskCaller(threads=4, arq_context={"redis": "arq's", **(arq_context or {})}, **hooks)
        self.resources: dict[str, Any] = {"http": "a client"}
        self.timeout = 20.0
        self.ledger = Ledger()
        self._delivered = 0

    def deliver(self, task: worker.Task[..., Any], *args: Any, tries: int = 0, **kwargs: Any) -> Execution:
        """A job of `task` from the wire, admitted and due for its next attempt."""
        payload = encode(task.name, task.signature.validate(args, kwargs), now_ms())
        self._delivered += 1
        job_id = f"job-{self._delivered}"
        claim = Claim(job_id.encode(), payload, str(now_ms()).encode(), tries, 0, None)
        config = Config.load(job_timeout=self.timeout, max_tries=3)
        execution = Execution(claim, "arq:queue", "t" * 28, 0, Limits.of(task, config))
        execution.message = Message.decode(job_id, payload)
        execution.task = task
        return execution

    def start(self, task: worker.Task[..., Any], execution: Execution) -> "asyncio.Task[Outcome]":
        """Execute a job of `task` in an asyncio task of its own, as the engine does."""
        execution.task = task
        return asyncio.create_task(self._execute(execution))

    async def _execute(self, execution: Execution) -> Outcome:
        self._executor.enter(execution)
        return await self._executor.execute(execution)

    @cached_property
    def _executor(self) -> Executor:
        return Executor(self.caller, resources=self.resources, once=Once(self.ledger))

    async def run(self, task: worker.Task[..., Any], /, *args: Any, tries: int = 0, **kwargs: Any) -> Outcome:
        """`deliver` and `start`, and wait for the outcome."""
        return await self.start(task, self.deliver(task, *args, tries=tries, **kwargs))


MakeHarness = Callable[..., ExecutorHarness]


@pytest.fixture
def make_harness(database: Database[db.AsyncSession]) -> Any:
    """Makes executors on the default database; arguments: arq's hooks."""
    made: list[ExecutorHarness] = []

    def make(arq_context: Mapping[Any, Any] | None = None, **hooks: Hook) -> ExecutorHarness:
        made.append(ExecutorHarness(arq_context, **hooks))
        return made[-1]

    yield make
    for harness in made:
        harness.caller.close()


@pytest.fixture
def harness(make_harness: MakeHarness) -> ExecutorHarness:
    """An executor on the default database."""
    return make_harness()


@pytest.fixture
def execute(harness: ExecutorHarness) -> Execute:
    """Runs one job on the default database."""
    return harness.run
