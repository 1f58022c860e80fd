"""The real servers that the tests run against: embedded, or those that the caller's environment names."""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import psycopg
import redis
from psycopg import sql
from sqlalchemy import URL, NullPool, create_engine, make_url

from worker.ledger.migrate import upgrade_on

if TYPE_CHECKING:
    import asyncpg


@dataclass(frozen=True)
class GivenServers:
    """Servers of the caller's, to use instead of embedded ones."""

    database_url: str | None
    redis_url: str | None

    @classmethod
    def take_from_environment(cls) -> Self:
        """Read the caller's URLs, and remove them and all settings: no test may depend on who runs it."""
        given = cls(os.environ.get("DATABASE_URL"), os.environ.get("REDIS_URL"))
        for name in [*os.environ]:
            if name in ("DATABASE_URL", "REDIS_URL") or name.startswith("WORKER_"):
                del os.environ[name]
        return given


class Databases:
    """Makes and drops databases on one PostgreSQL server. The account in `url` must be allowed to.

    Migrated ones are copies of one that is migrated once.
    """

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        if self._url.get_backend_name() != "postgresql":
            raise ValueError(f"The tests need PostgreSQL: DATABASE_URL=postgresql://..., not {self._url!r}")
        self._admin = psycopg.connect(as_dsn(self._url), autocommit=True)
        self._kept = ExitStack()

    def close(self) -> None:
        """Close the connection; databases that were not dropped stay."""
        self._kept.close()
        self._admin.close()

    @contextmanager
    def new(self) -> Iterator[URL]:
        """A database with an empty ledger and nothing else, dropped afterwards whoever is connected to it."""
        with self._copy_of(self._migrated) as url:
            yield url

    @contextmanager
    def bare(self) -> Iterator[URL]:
        """The same without the ledger."""
        with self._copy_of("template0") as url:
            yield url

    @cached_property
    def _migrated(self) -> str:
        """The name of the database that the others are copies of."""
        url = self._kept.enter_context(self.bare())
        migrate(url)
        assert url.database is not None
        return url.database

    @contextmanager
    def _copy_of(self, template: str) -> Iterator[URL]:
        name = f"tandem_test_{secrets.token_hex(6)}"
        self._admin.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        )
        try:
            yield self._url.set(database=name)
        finally:
            self._admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def assert_no_open_transaction(self, url: URL) -> None:
        """Raise `AssertionError` if a backend of this database stays idle in a transaction.

        Not at once: a backend needs a moment to see that its client has gone.
        """
        query = "SELECT pid, query FROM pg_stat_activity WHERE datname = %s AND state LIKE 'idle in transaction%%'"
        deadline = time.monotonic() + 20
        while left := self._admin.execute(query, [url.database]).fetchall():
            assert time.monotonic() < deadline, f"the test left backends idle in a transaction: {left}"
            time.sleep(0.01)


class Observer:
    """Looks at one database from outside: through a connection of its own, one statement a transaction."""

    def __init__(self, connection: "asyncpg.Connection[Any]") -> None:
        self._connection = connection

    async def fetch(self, query: str, *args: object) -> list[Any]:
        """All rows, as asyncpg records. Arguments are $1, $2, ..."""
        return list(await self._connection.fetch(query, *args))

    async def fetchval(self, query: str, *args: object) -> Any:
        """The first value of the first row."""
        return await self._connection.fetchval(query, *args)

    async def execute(self, query: str, *args: object) -> str:
        """Run a statement; its command tag."""
        return str(await self._connection.execute(query, *args))

    async def backends(self, state: str | None = None) -> int:
        """How many other backends serve this database, in `state` ("active", "idle", ...) or in any."""
        return int(
            await self.fetchval(
                f"SELECT count(*) FROM {_OTHER_BACKENDS} AND ($1::text IS NULL OR state = $1)",
                state,
            )
        )

    async def idle_in_transaction(self) -> int:
        """How many other backends wait in a transaction, aborted or not."""
        return int(await self.fetchval(f"SELECT count(*) FROM {_OTHER_BACKENDS} AND state LIKE 'idle in transaction%'"))

    async def committing(self) -> int:
        """How many other backends are in the middle of a COMMIT."""
        return int(
            await self.fetchval(f"SELECT count(*) FROM {_OTHER_BACKENDS} AND state = 'active' AND query ~* '^commit'")
        )

    async def terminate_backends(self) -> int:
        """Cut all other connections to this database, as an administrator would; how many there were."""
        return int(await self.fetchval(f"SELECT count(pg_terminate_backend(pid)) FROM {_OTHER_BACKENDS}"))


_OTHER_BACKENDS = (
    "pg_stat_activity WHERE datname = current_database()"
    " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
)


def migrate(url: URL) -> None:
    """Make the ledger there, as ``python -m worker migrate`` does."""
    sync = {"postgresql": "postgresql+psycopg", "sqlite": "sqlite+pysqlite"}[url.get_backend_name()]
    engine = create_engine(url.set(drivername=sync), poolclass=NullPool)
    with engine.begin() as connection:
        upgrade_on(connection)


def as_dsn(url: URL) -> str:
    """The URL for asyncpg and psycopg themselves."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def as_url(url: URL, driver: str) -> str:
    """The URL for SQLAlchemy with this driver."""
    return url.set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)


def refuse_foreign_data(client: redis.Redis) -> None:
    """Raise `ValueError` if this Redis database holds anything: the tests would delete it."""
    keys = client.dbsize()
    if keys:
        raise ValueError(
            f"REDIS_URL names a database that holds {keys} keys, and the tests would delete them: "
            "name an empty one, for example redis://localhost:6379/15"
        )
