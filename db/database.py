"""``Database``: one database, given as a URL or as factories. Its engine is opened on first use.

1. A URL names the driver, and so the kind of its sessions: asynchronous (`AsyncSession`) or not (`Session`).
2. The engine is opened with the first session, in that session's event loop and process.
3. `change_host` sends new sessions to another host. Sessions in flight keep their engine until they end.
4. The default database is the one that ``DATABASE_URL`` names, unless `Database(url, default=True)` takes its place.
"""

import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, NamedTuple, TypeAlias

from sqlalchemy import URL, Connection, Engine, NullPool, QueuePool, StaticPool, create_engine, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker
from typing_extensions import TypeVar

from db.aio.once import Once
from db.aio.threads import in_thread
from db.engine import guards, libpq, postgres, sqlite
from db.engine.leases import LeasedEngine
from db.engine.reset import ConnectionReset, Reset
from db.engine.sqlalchemy_version import POOL_OF_AIOSQLITE
from db.engine.url import host_of, parse_url, same_database, sync_twin, with_host
from db.errors import DatabaseURLError, WrongLoopError
from db.session.classes import AsyncSession, Session, adapt_sessionmaker

__all__ = [
    "AnyDatabase",
    "Database",
    "PoolUsage",
    "default_database",
    "given_default",
    "is_default",
    "parse_url",
    "set_default_database",
]

logger = logging.getLogger("db")

S = TypeVar("S", bound=AsyncSession | Session, default=AsyncSession)
AnyDatabase: TypeAlias = "Database[AsyncSession] | Database[Session]"

EngineFactory: TypeAlias = Callable[[str | None], AsyncEngine | Engine]
"""host -> engine."""
SessionFactory: TypeAlias = Callable[[Any], "async_sessionmaker[Any] | sessionmaker[Any]"]
"""engine -> sessionmaker."""
BeforeSession: TypeAlias = Callable[["Database[Any]", dict[str, Any]], Awaitable[None]]
"""Gets the database and the session's arguments. May `await database.change_host(...)`, or set `bind` and others."""

BeforeFirstSession: TypeAlias = Callable[["Database[Any]"], Awaitable[Any]]
"""Gets the database. Sessions that it opens do not wait for its own end."""

# Engine options that are meant for one driver alone.
_OF_ONE_DRIVER = ("connect_args", "pool", "poolclass", "creator", "async_creator")


class PoolUsage(NamedTuple):
    """The connections of a database's pool."""

    size: int
    """The most that the pool opens."""
    used: int
    idle: int
    """Open, and not used."""


class Database(Generic[S]):
    """One database.

    ::

        Database("postgresql+asyncpg://localhost/shop", default=True)
        replica = Database("postgresql+asyncpg://replica/shop")

        async with scope():
            orders = await (await session(replica)).scalars(select(Order))

    Args:
        url: the database's URL, e.g. ``postgresql+asyncpg://app:secret@db-1/app``. Without a driver, asyncpg or
            aiosqlite is used. Also SQLAlchemy's `URL`, or a dict with the arguments of `URL.create`.
        engine: instead of a URL, a factory `host -> engine`. The engine is used unchanged: the limits below, and the
            set-up of SQLite, are for URLs.
        bind: instead of a URL, an existing engine, or a connection. Sessions join the transaction of a connection
            through savepoints, as in tests. `bind` is never disposed here.
        host: the first host, for `engine`. A URL has its own.
        sessions: a factory `engine -> sessionmaker`. Default: a sessionmaker without `expire_on_commit`.
        before_session: an async hook, called before each session with the database and the session's arguments.
        before_first_session: an async hook, called with the database before the first session, e.g. to create tables.
            Other sessions wait for its end. If it raises, the session is not opened, and the next one calls it again.
        default: make this the default database.
        name: the database's name in errors. Default: the database name in the URL.
        pool_size: connections that are kept, and open at most (default 10).
        pool_timeout: seconds to wait for a connection of the pool (default 30).
        pre_ping: ping each connection before it is used, at one round trip (default True). A connection of asyncpg that
            was used within the last second is pinged only if the server has sent something since, its end for example.
        connect_timeout: seconds to open a connection, or to ping it (default 10). A value in the URL wins. For SQLite:
            seconds to wait for another writer.
        statement_timeout: seconds that one statement may take on the server (default 60).
        idle_in_transaction_timeout: seconds that a transaction may sit idle before the server ends it (default 60).
        pooler: the URL leads to PgBouncer in transaction mode. Statement names are unique then, and there are no
            session settings: set the timeouts for the role instead.
        reset: which returned connections of a URL are reset. ``"changed"`` (default): those with changed session state,
            or with a direct use of the driver, at one round trip each. ``"always"``: all, for functions that change
            session state. ``"never"``: none.
        engine_options: further arguments of `create_engine`. Its `connect_args` are merged with ours, and win. Another
            `poolclass` (`NullPool`) has no `pool_size` and no `pool_timeout`. Errors hide the values of a statement,
            such as a password, unless `hide_parameters` is False.

    Raises:
        DatabaseURLError: `url` cannot be parsed, or names an unknown driver or a shared ``:memory:``; `host` is empty.
        TypeError: `bind` is neither an engine nor a connection.
    """

    def __init__(
        self,
        url: str | URL | Mapping[str, Any] | None = None,
        *,
        engine: EngineFactory | None = None,
        bind: AsyncEngine | AsyncConnection | Engine | Connection | None = None,
        host: str | None = None,
        sessions: SessionFactory | None = None,
        before_session: BeforeSession | None = None,
        before_first_session: BeforeFirstSession | None = None,
        default: bool = False,
        name: str | None = None,
        pool_size: int = 10,
        pool_timeout: float = 30.0,
        pre_ping: bool = True,
        connect_timeout: float = 10.0,
        statement_timeout: float = 60.0,
        idle_in_transaction_timeout: float = 60.0,
        pooler: bool = False,
        reset: Reset = "changed",
        engine_options: Mapping[str, Any] | None = None,
    ) -> None:
        if sum(source is not None for source in (url, engine, bind)) != 1:
            raise DatabaseURLError("give a Database exactly one of url, engine (a factory) and bind")
        if bind is not None and not isinstance(bind, AsyncEngine | AsyncConnection | Engine | Connection):
            raise TypeError(
                f"bind= takes an engine or a connection, not {type(bind).__name__}: a URL is the first argument"
            )
        if host == "":
            raise DatabaseURLError("host= is empty: is an environment variable not set?")
        self.url = None if url is None else parse_url(url)
        if self.url is not None:
            connect_timeout = libpq.connect_timeout(self.url) or connect_timeout
        self._kind = None if self.url is None else self.url.get_backend_name()
        self._first_host = host if self.url is None else host_of(self.url)
        self.host = self._first_host
        self.name = name or (self.url.database if self.url is not None else None) or "database"
        given = engine_options or {}
        self.pool_size: int | None = given.get("pool_size", pool_size) if _has_pool(given) else None
        """Connections at most. None without a pool, or with a pool of the user's own."""
        self.connect_timeout = connect_timeout
        # The client's limit comes after the server's. So a server that can still answer reports its own limit first,
        # and the client's limit covers a server that cannot.
        self.command_timeout = statement_timeout + connect_timeout
        self._make_engine = engine or self._engine_from_url
        self._bind = bind
        self._sessions = sessions
        self._before_session = before_session
        self._first_session = None if before_first_session is None else Once(partial(before_first_session, self))
        self._limits: dict[str, Any] = {
            "connect_timeout": connect_timeout,
            "statement_timeout": statement_timeout,
            "idle_in_transaction_timeout": idle_in_transaction_timeout,
            "pooler": pooler,
        }
        self._reset = reset
        pool = {"pool_size": pool_size, "max_overflow": 0, "pool_timeout": pool_timeout} if _has_pool(given) else {}
        self._engine_options: dict[str, Any] = {"pool_pre_ping": pre_ping, "hide_parameters": True, **pool, **given}
        self._open: LeasedEngine | None = None
        self._twin: Database[Session] | None = None
        if default:
            set_default_database(self)

    def __repr__(self) -> str:
        return f"<Database {self.name}>"

    @property
    def is_async(self) -> bool:
        """Whether sessions are `AsyncSession`s. An engine factory is called to find out."""
        if self.url is not None:
            return bool(self.url.get_dialect().is_async)
        source = self._bind if self._bind is not None else self._opened().engine
        return isinstance(source, AsyncEngine | AsyncConnection)

    @property
    def is_sqlite(self) -> bool:
        return self.kind == "sqlite"

    @property
    def kind(self) -> str:
        """SQLAlchemy's name of the backend: ``postgresql``, ``sqlite``."""
        return self._opened().engine.dialect.name if self._kind is None else self._kind

    def is_same_as(self, other: "Database[Any]") -> bool:
        """Whether `other` is the same database, perhaps through another driver."""
        return self is other or same_database(self.url, other.url)

    def is_twin_of(self, other: "Database[Any]") -> bool:
        """Whether it is `other` itself, or the same database through a driver of the other kind.

        A second `Database` of one URL and one kind is no twin: it may be a replica's, which has the primary's URL where
        a program is developed.
        """
        return self is other or (self.is_async != other.is_async and self.is_same_as(other))

    @property
    def sync(self) -> "Database[Session]":
        """The same database through a synchronous driver (psycopg, or the standard library's sqlite3).

        Raises:
            DatabaseURLError: this database has no URL to derive the twin from.
        """
        if self._twin is None:
            url = None if self.url is None else sync_twin(self.url)
            if url is None:
                raise DatabaseURLError(f"{self!r} has no URL to reach it through a synchronous driver")
            if not self.is_async:
                return self  # type: ignore[return-value]  # the URL says that S is Session
            twin = Database[Session](
                url,
                name=self.name,
                before_session=self._before_session,
                before_first_session=None if self._first_session is None else self._prepare_twin,
                engine_options=self._engine_options_for_twin(),
                pool_size=self.pool_size or 0,
                reset=self._reset,
                **self._limits,
            )
            twin.host = self.host
            self._twin = twin
        return self._twin

    async def _prepare_twin(self, _twin: "Database[Session]") -> None:
        if self._first_session is not None:
            await self._first_session()

    def _engine_options_for_twin(self) -> dict[str, Any]:
        options = {key: value for key, value in self._engine_options.items() if key not in _OF_ONE_DRIVER}
        if self._engine_options.get("poolclass") is NullPool:
            options["poolclass"] = NullPool
        own = self._engine_options.get("connect_args", {})
        if settings := libpq.options_for(own.get("server_settings", {})) or own.get("options"):
            options["connect_args"] = {"options": settings}
        return options

    async def change_host(self, host: str | None) -> None:
        """Open new sessions on `host`. Sessions in flight end where they began; then the old engine is disposed.

        Args:
            host: the argument of the engine factory. For a URL: ``name``, ``name:port``, ``[IPv6]:port``, or a folder
                of sockets. None goes back to the first host.

        Raises:
            DatabaseURLError: the host is empty, or the port is not a number.
        """
        if host == "":
            raise DatabaseURLError("change_host('') names no host: is an environment variable not set?")
        host = host or self._first_host
        if self.url is not None and host:
            with_host(self.url, host)
        if self._twin is not None:
            await self._twin.change_host(host)
        if host == self.host:
            return
        before, self.host = self.host, host
        try:
            await self._retire()
        except WrongLoopError:
            self.host = before
            raise

    async def dispose(self) -> None:
        """Close all connections. Those of sessions in flight close when the sessions end.

        Sessions of cancelled tasks are waited for, five seconds at most. So the server has been told to stop their
        statements when this returns. The next use opens the engine again.

        Raises:
            WrongLoopError: the engine belongs to another event loop, which is still open.
        """
        await self._retire(after_cancelled=True)
        if self._twin is not None:
            await self._twin.dispose()

    async def check(self) -> None:
        """Open a connection and ask the server for an answer.

        Raises:
            DatabaseUnreachableError: there is no server, or it does not answer.
            sqlalchemy.exc.DBAPIError: the server refuses, e.g. the password or the database's name.
            WrongLoopError: the engine belongs to another event loop.
        """
        engine = self._opened_here().engine
        if isinstance(engine, AsyncEngine):
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
        else:
            await _check_in_thread(engine)

    @property
    def pool_usage(self) -> PoolUsage | None:
        """The connections of the pool, those of the synchronous twin included. None without a pool of a known size.

        Opens nothing. Any thread may ask.
        """
        if self.pool_size is None or self.url is None:
            return None
        used, idle = (0, 0) if self._open is None else self._open.connections
        twin = None if self._twin is None else self._twin.pool_usage
        if twin is None:
            return PoolUsage(self.pool_size, used, idle)
        return PoolUsage(self.pool_size + twin.size, used + twin.used, idle + twin.idle)

    @property
    def has_hook(self) -> bool:
        """Whether `session_arguments` calls a hook."""
        return self._before_session is not None or not (self._first_session is None or self._first_session.is_done)

    async def session_arguments(self) -> dict[str, Any]:
        """Call the hooks, and return the arguments of the next session, as `before_session` sets them."""
        if self._first_session is not None:
            await self._first_session()
        arguments: dict[str, Any] = {}
        if self._before_session is not None:
            await self._before_session(self, arguments)
        return arguments

    def open_session(self, arguments: Mapping[str, Any]) -> tuple[S, LeasedEngine]:
        """Open a session, and lease its engine. The owner releases the lease. For `db.scope` and `db.sessions`."""
        if "bind" in arguments:
            _install_guards(arguments["bind"])
        opened = self._opened_here()
        session: S = opened.maker(**arguments)
        opened.lease()
        return session, opened

    @contextmanager
    def bound_to(self, connection: AsyncConnection | Connection) -> Iterator[None]:
        """A block in which new sessions join the transaction of `connection` through savepoints. For `db.testing`."""
        before = self._bind, self._open
        # Now and not on first use, which may be on another loop than the connection's.
        self._bind, self._open = connection, self._bound(connection)
        try:
            yield
        finally:
            self._bind, self._open = before

    async def _retire(self, *, after_cancelled: bool = False) -> None:
        self._forget_unusable()
        if self._open is None:
            return
        self._open.check_loop(self.name)
        retired, self._open = self._open, None
        try:
            if after_cancelled:
                await retired.wait_for_cancelled()
        finally:
            await retired.retire()

    def _forget_unusable(self) -> None:
        """Drop the engine if it belongs to a parent process, or to a closed loop."""
        if self._open is None:
            return
        if not self._open.of_this_process:
            self._open.forget_inherited()
            self._open = None
        elif self._open.is_loop_closed:
            self._open.close_without_loop()
            self._open = None

    def _opened_here(self) -> LeasedEngine:
        """The engine, checked for use on the running event loop."""
        opened = self._opened()
        opened.check_loop(self.name)
        return opened

    def _opened(self) -> LeasedEngine:
        self._forget_unusable()
        if self._open is None:
            self._open = self._bound(self._bind) if self._bind is not None else self._new_engine()
        return self._open

    def _new_engine(self) -> LeasedEngine:
        if self.url is None and self.host is None:
            raise DatabaseURLError(
                "engine= is called with a host: give the Database host=, or call change_host() first"
            )
        engine = self._make_engine(self.host)
        if self.url is None:
            _install_guards(engine)
        else:
            self._install_own_guards(_sync_part(engine))
        return LeasedEngine(engine, self._maker(engine), owned=True)

    def _install_own_guards(self, engine: Engine) -> None:
        pooler: bool = self._limits["pooler"]
        idle_limit: float = self._limits["idle_in_transaction_timeout"]
        guards.install(engine, idle_limit=None if pooler or idle_limit == 0 else idle_limit)  # 0: there is none
        if self._reset != "never":
            ConnectionReset(engine, self._reset, timeout=self.connect_timeout, pooler=pooler)

    def _bound(self, bind: AsyncEngine | AsyncConnection | Engine | Connection) -> LeasedEngine:
        if isinstance(bind, AsyncEngine | Engine) and isinstance(bind.pool, StaticPool):
            logger.warning(
                "%s: the engine has a StaticPool, so all sessions share one connection and one transaction: "
                "give it poolclass=AsyncAdaptedQueuePool (QueuePool), pool_size=1 and max_overflow=0",
                self.name,
            )
        _install_guards(bind)
        maker = self._maker(bind)
        if isinstance(bind, AsyncConnection | Connection):
            maker.configure(join_transaction_mode="create_savepoint")
        return LeasedEngine(bind if isinstance(bind, AsyncEngine) else bind.engine, maker, owned=False)

    def _maker(self, bind: Any) -> "async_sessionmaker[Any] | sessionmaker[Any]":
        if self._sessions is not None:
            return adapt_sessionmaker(self._sessions(bind))
        if isinstance(bind, AsyncEngine | AsyncConnection):
            return async_sessionmaker(bind, class_=AsyncSession, expire_on_commit=False)
        return sessionmaker(bind, class_=Session, expire_on_commit=False)

    def _engine_from_url(self, host: str | None) -> AsyncEngine | Engine:
        assert self.url is not None  # noqa: S101 - called only for a URL
        url = self.url if host is None or host == self._first_host else with_host(self.url, host)
        if url.get_backend_name() == "sqlite":
            return self._sqlite_engine(url)
        options = self._engine_options | {"connect_args": self._connect_arguments(url)}
        if url.get_driver_name() in libpq.DRIVERS:
            url = libpq.for_sqlalchemy(url)
        if not url.get_dialect().is_async:
            return create_engine(url, **options)
        engine = create_async_engine(url, **options)
        if url.get_driver_name() == "asyncpg":
            postgres.ping_idle_in_one_round_trip(engine, self.connect_timeout)
        return engine

    def _sqlite_engine(self, url: URL) -> AsyncEngine | Engine:
        options = {key: value for key, value in self._engine_options.items() if key != "pool_pre_ping"}
        if url.get_dialect().is_async and _has_pool(options):
            options.setdefault("poolclass", POOL_OF_AIOSQLITE)
        engine = create_async_engine(url, **options) if url.get_dialect().is_async else create_engine(url, **options)
        sqlite.prepare(engine.sync_engine if isinstance(engine, AsyncEngine) else engine, self.connect_timeout)
        return engine

    def _connect_arguments(self, url: URL) -> dict[str, Any]:
        """Merge our limits, the URL's parameters and those of `engine_options`. Later ones win."""
        own: dict[str, Any] = self._engine_options.get("connect_args", {})
        match url.get_driver_name():
            case "asyncpg":
                return postgres.merged(postgres.asyncpg_arguments(**self._limits), libpq.driver_arguments(url), own)
            case "psycopg" | "psycopg_async":
                return postgres.merged(postgres.psycopg_arguments(**self._limits), libpq.driver_arguments(url), own)
            case _:
                return dict(own)


_default: "Database[Any] | None" = None


def default_database() -> Database[AsyncSession]:
    """The default database: the given one, else the one that ``DATABASE_URL`` names.

    ::

        await default_database().dispose()  # at the end of the application

    Raises:
        DatabaseURLError: there is no default database.
    """
    if _default is None:
        url = os.environ.get("DATABASE_URL")
        if not url:
            raise DatabaseURLError(
                "there is no default database: set DATABASE_URL, e.g. postgresql+asyncpg://user:password@host/name, "
                "or make one with db.Database(url, default=True)"
            )
        set_default_database(Database(url))
    assert _default is not None  # noqa: S101 - just set
    return _default


def given_default() -> "Database[Any] | None":
    """The default database, if one was given or used already, else None."""
    return _default


def set_default_database(database: "Database[Any] | None") -> None:
    """Make `database` the default one. None goes back to ``DATABASE_URL``.

    ::

        set_default_database(Database("sqlite+aiosqlite:///shop.sqlite"))
        set_default_database(None)  # that of DATABASE_URL again
    """
    global _default  # noqa: PLW0603 - the one default of the process
    _default = database


def is_default(database: "Database[Any]") -> bool:
    """Whether `database` is the default one, perhaps through another driver."""
    return _default is not None and database.is_same_as(_default)


def order_of_commit(database: "Database[Any]") -> int:
    """The default database and its twin are committed last, and before them what else has its URL."""
    if _default is None:
        return 0
    return is_default(database) + database.is_twin_of(_default)


def _has_pool(engine_options: Mapping[str, Any]) -> bool:
    """Whether the pool takes a size from us. A pool of the user's own, or of another class, does not."""
    return "pool" not in engine_options and issubclass(engine_options.get("poolclass", QueuePool), QueuePool)


def _install_guards(source: AsyncEngine | AsyncConnection | Engine | Connection) -> None:
    guards.install(_sync_part(source.engine if isinstance(source, AsyncConnection | Connection) else source))


def _sync_part(engine: AsyncEngine | Engine) -> Engine:
    return engine.sync_engine if isinstance(engine, AsyncEngine) else engine


async def _check_in_thread(engine: Engine) -> None:
    def ask() -> None:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))

    await in_thread(ask)
