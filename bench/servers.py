"""The servers that everything runs on: embedded ones, on TCP, as servers elsewhere are reached."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis
from sqlalchemy import Engine, create_engine, make_url, text

from bench.contender_api import Table
from bench.environments import valkey_server
from worker.embedded import EmbeddedPostgres, EmbeddedRedis
from worker.ledger.migrate import upgrade_on

_CONNECTIONS = 300  # to PostgreSQL: two workers with a pool of 32 each, and what was killed a moment ago
_SECOND = "second"
# What waits for its client, in the middle of a statement, or for a lock of somebody who does, is not at work.
_IS_BUSY = (
    "SELECT count(*) FROM pg_stat_activity "
    "WHERE datname = current_database() AND state = 'active' AND backend_type = 'client backend' "
    "AND coalesce(wait_event_type, '') NOT IN ('Client', 'Lock') AND pid <> pg_backend_pid()"
)
_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename !~ '^alembic|_version$'"


class _OtherRedis(EmbeddedRedis):
    """An embedded server that runs another program than that of the wheel."""

    def __init__(self, program: Path) -> None:
        super().__init__(tcp=True)
        self._program = program

    def _command(self) -> list[str]:
        return [str(self._program), *super()._command()[1:]]


@dataclass(frozen=True)
class RedisServer:
    """A Redis, or what speaks like one."""

    address: str
    """Without a database's number."""

    def url(self, database: int = 0) -> str:
        return f"{self.address}/{database}"

    @cached_property
    def client(self) -> Any:
        """redis-py's, whose types allow for an answer that is yet to be awaited."""
        return redis.Redis.from_url(self.url())

    @cached_property
    def title(self) -> str:
        """Redis 6.2.14"""
        info = self.client.info("server")
        return f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"

    @cached_property
    def has_functions(self) -> bool:
        """Whether it is Redis 7 or newer in what it can do."""
        return int(self.client.info("server")["redis_version"].split(".")[0]) >= 7

    @property
    def port(self) -> int:
        return urlsplit(self.address).port or 6379

    def memory(self) -> int:
        """Bytes in use."""
        return int(self.client.info("memory")["used_memory"])


@dataclass(frozen=True)
class PostgresServer:
    """A PostgreSQL."""

    url: str
    """A SQLAlchemy URL, for asyncpg."""

    @cached_property
    def engine(self) -> Engine:
        return create_engine(make_url(self.url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")

    @cached_property
    def title(self) -> str:
        return f"PostgreSQL {self.number('SELECT current_setting($$server_version_num$$)::int / 10000')}"

    @property
    def port(self) -> int:
        return make_url(self.url).port or 5432

    def create(self, name: str) -> "PostgresServer":
        """Another database of the same server."""
        with self.engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        return PostgresServer(make_url(self.url).set(database=name).render_as_string(hide_password=False))

    def migrate(self) -> None:
        """Create all tables."""
        Table.metadata.create_all(self.engine)
        with self.engine.execution_options(isolation_level="READ COMMITTED").begin() as connection:
            upgrade_on(connection)

    def number(self, query: str) -> int:
        """The one number that `query` gives."""
        with self.engine.connect() as connection:
            return int(connection.scalar(text(query)) or 0)

    @property
    def is_busy(self) -> bool:
        """Whether it works for another client."""
        return bool(self.number(_IS_BUSY))

    def empty(self) -> None:
        """Remove all rows of all tables, but leave it migrated."""
        with self.engine.connect() as connection:
            tables = connection.scalars(text(_TABLES)).all()
            connection.execute(text(f"TRUNCATE {', '.join(tables)}"))


@dataclass(frozen=True)
class Servers:
    """The servers of one run."""

    redis: RedisServer
    postgres: PostgresServer
    second_redis: RedisServer
    """Another Redis, for a contender that is measured at the same time."""
    second_postgres: PostgresServer
    """Another database of the same PostgreSQL, likewise."""
    functional_redis: RedisServer | None
    """A Redis with functions, for contenders that need them; often `redis` itself."""

    def empty(self) -> None:
        """Remove all data."""
        for server in {self.redis, self.second_redis, self.functional_redis}:
            if server is not None:
                server.client.flushall()
        self.postgres.empty()
        self.second_postgres.empty()


@contextmanager
def started(redis_program: Path | None = None, *, functions: bool = True) -> Iterator[Servers]:
    """Start the servers.

    Args:
        redis_program: takes the place of the embedded Redis.
        functions: whether a contender needs a Redis with functions.

    Raises:
        EmbeddedServerError: one cannot be started.
    """
    with ExitStack() as running:
        main, second = (
            _redis(running, _OtherRedis(redis_program) if redis_program else EmbeddedRedis(tcp=True)) for _ in range(2)
        )
        embedded_postgres = EmbeddedPostgres(tcp=True, options={"max_connections": _CONNECTIONS})
        postgres = PostgresServer(running.enter_context(embedded_postgres).url)
        second_postgres = postgres.create(_SECOND)
        for database in (postgres, second_postgres):
            running.callback(database.engine.dispose)
            database.migrate()
        yield Servers(main, postgres, second, second_postgres, _functional(running, main) if functions else None)


def _functional(running: ExitStack, main: RedisServer) -> RedisServer | None:
    if main.has_functions:
        return main
    valkey = valkey_server()
    return _redis(running, _OtherRedis(valkey)) if valkey else None


def _redis(running: ExitStack, server: EmbeddedRedis) -> RedisServer:
    redis_server = RedisServer(running.enter_context(server).url.rpartition("/")[0])
    running.callback(redis_server.client.close)
    return redis_server
