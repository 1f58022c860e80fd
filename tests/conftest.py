"""Fixtures on real servers. What each gives is in its docstring: `pytest --fixtures`."""

import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Protocol

import asyncpg
import psutil
import pytest
import redis
from sqlalchemy import URL, make_url

from tests.servers import Databases, GivenServers, Observer, as_dsn, as_url, migrate, refuse_foreign_data
from worker import Broker, set_default_broker
from worker.embedded import EmbeddedPostgres, EmbeddedRedis

GIVEN = GivenServers.take_from_environment()


def pytest_configure(config: pytest.Config) -> None:
    """Let root and an ordinary user take turns in one checkout: what one has cached the other cannot change.

    A run that was started in the background ignores Ctrl-C, and so would every process that the tests start.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for harmless in (
        "ignore::pytest.PytestCacheWarning",
        "ignore:The database setting is not configured:hypothesis.errors.HypothesisWarning",
    ):
        config.addinivalue_line("filterwarnings", harmless)


class StartPostgres(Protocol):
    """Starts a PostgreSQL of a test's own, on TCP, with these settings."""

    def __call__(self, **options: str | int) -> EmbeddedPostgres: ...


class StartRedis(Protocol):
    """Starts a Redis of a test's own, on TCP, with these settings."""

    def __call__(self, **options: str | int) -> EmbeddedRedis: ...


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    """The run's PostgreSQL."""
    with ExitStack() as started:
        url = GIVEN.database_url or started.enter_context(EmbeddedPostgres()).url
        yield started.enter_context(closing(Databases(url)))


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """The URL of the run's Redis."""
    with ExitStack() as started:
        yield GIVEN.redis_url or started.enter_context(EmbeddedRedis()).url


@pytest.fixture(autouse=True)
def _no_process_left() -> Iterator[None]:
    """No test leaves a child process behind."""
    this = psutil.Process()
    before = set(this.children())
    yield
    left = set(this.children()) - before
    _, alive = psutil.wait_procs(left, timeout=20) if left else ([], [])
    commands = [process.cmdline() for process in alive]
    for process in alive:
        process.kill()
    assert not commands, f"the test left processes behind: {commands}"


@pytest.fixture
def _database(databases: Databases) -> Iterator[URL]:
    with databases.new() as url:
        yield url
        databases.assert_no_open_transaction(url)


@pytest.fixture
def database_url(_database: URL) -> str:
    """A PostgreSQL database of the test's own, with an empty ledger and nothing else: `postgresql+asyncpg://...`.

    A test that leaves a backend idle in a transaction fails.
    """
    return as_url(_database, "asyncpg")


@pytest.fixture
def sync_database_url(_database: URL) -> str:
    """The same database as `database_url`, for a sync driver: `postgresql+psycopg://...`."""
    return as_url(_database, "psycopg")


@pytest.fixture
async def postgres(_database: URL) -> AsyncIterator[Observer]:
    """Looks at the database of `database_url` from outside."""
    # Without a cache of statements, since tests change tables under it.
    connection = await asyncpg.connect(as_dsn(_database), statement_cache_size=0)
    try:
        yield Observer(connection)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def _migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("sqlite") / "migrated.sqlite"
    migrate(URL.create("sqlite", database=str(file)))
    return file


@pytest.fixture
def sqlite_url(tmp_path: Path, _migrated_file: Path) -> str:
    """A SQLite file of the test's own, with an empty ledger and nothing else: `sqlite+aiosqlite:///...`."""
    file = shutil.copy(_migrated_file, tmp_path / "test.sqlite")
    return f"sqlite+aiosqlite:///{file}"


@pytest.fixture
def redis_url(redis_server: str) -> Iterator[str]:
    """An empty Redis database."""
    with closing(redis.Redis.from_url(redis_server)) as client:
        if GIVEN.redis_url:
            refuse_foreign_data(client)
        else:
            client.flushdb()
        yield redis_server
        client.flushdb()


@pytest.fixture
async def broker(redis_url: str) -> AsyncIterator[Broker]:
    """The default queue of this process, empty."""
    broker = Broker(redis_url, default=True)
    yield broker
    await broker.close()
    set_default_broker(None)


@pytest.fixture
def observer(redis_url: str) -> Any:
    """A Redis client that observes what the code under test does."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
def own_postgres() -> Iterator[StartPostgres]:
    """Starts PostgreSQL servers that the test may kill and restart, with an empty ledger."""
    with ExitStack() as started:

        def start(**options: str | int) -> EmbeddedPostgres:
            server = started.enter_context(EmbeddedPostgres(tcp=True, options=options))
            migrate(make_url(server.url))
            return server

        yield start


@pytest.fixture
def own_redis() -> Iterator[StartRedis]:
    """Starts Redis servers that the test may kill and restart."""
    with ExitStack() as started:

        def start(**options: str | int) -> EmbeddedRedis:
            return started.enter_context(EmbeddedRedis(tcp=True, options=options))

        yield start
