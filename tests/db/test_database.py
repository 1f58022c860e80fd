"""`Database`: from a URL, factories or something to bind to; hosts that change; loops and processes."""

import asyncio
import gc
import os
import threading
import traceback
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import psycopg
import pytest
import uvloop
from sqlalchemy import NullPool, event, make_url, text
from sqlalchemy import orm as sa_orm
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext import asyncio as sa_async

import db
from db.database import given_default, is_default
from db.engine import leases as engines
from db.engine import postgres as postgres_engine
from tests.db.conftest import INSERT, Count, insert
from tests.proxy import Proxy
from tests.servers import Observer, as_dsn
from tests.waiting import at_once, eventually


async def test_default_database_comes_from_the_environment(
    database: db.Database, database_url: str, monkeypatch: pytest.MonkeyPatch, rows: Count
) -> None:
    """Without another the default database is the one that DATABASE_URL names, without a driver too."""
    db.set_default_database(None)
    monkeypatch.setenv("DATABASE_URL", make_url(database_url).set(drivername="postgresql").render_as_string(False))
    assert given_default() is None
    await db.isolated(insert, "a")
    assert await rows() == 1
    assert given_default() is db.default_database()
    await db.default_database().dispose()


async def test_missing_default_database_is_a_named_error() -> None:
    """The error names DATABASE_URL and shows an example."""
    with pytest.raises(db.DatabaseURLError, match=r"set DATABASE_URL, e\.g\. postgresql\+asyncpg://user"):
        async with db.scope():
            await db.session()


async def test_given_database_becomes_the_default(database: db.Database) -> None:
    """`Database(url, default=True)` takes the default one's place, and `set_default_database` too."""
    other = db.Database(database.url)
    assert db.default_database() is database
    db.set_default_database(other)
    assert db.default_database() is other
    third = db.Database(database.url, default=True)
    assert db.default_database() is third


async def test_sync_driver_on_the_default_url_is_its_twin(database: db.Database, sync_database_url: str) -> None:
    """A database with the default one's URL and another driver counts as the default one; another database does not."""
    assert database.sync is database.sync
    assert is_default(database)
    assert is_default(database.sync)
    assert is_default(db.Database(sync_database_url))
    assert not is_default(db.Database(make_url(sync_database_url).set(database="other")))
    assert database.sync.sync is database.sync
    assert database.is_async
    assert not database.sync.is_async


async def test_limits_are_set_on_the_connection(database_url: str, sync_database_url: str) -> None:
    """The time limits reach the server, through both drivers, in one round trip to connect and none later."""
    limits = {"statement_timeout": 7, "idle_in_transaction_timeout": 9}
    database = db.Database(database_url, **limits)  # type: ignore[arg-type]
    async with db.scope():
        session = await db.session(database)
        assert await session.scalar(text("SHOW statement_timeout")) == "7s"
        assert await session.scalar(text("SHOW idle_in_transaction_session_timeout")) == "9s"
        sync_session = await db.session(database.sync)
        assert await asyncio.to_thread(sync_session.scalar, text("SHOW statement_timeout")) == "7s"
        assert await asyncio.to_thread(sync_session.scalar, text("SHOW idle_in_transaction_session_timeout")) == "9s"
    await database.dispose()


@pytest.mark.parametrize("unasked", [0.0, 60.0])
async def test_scope_sends_only_begin_its_statements_and_commit(
    database_url: str, unasked: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scope sends BEGIN, its statements, COMMIT; one on a connection that sat idle asks it once whether it lives."""
    monkeypatch.setattr(postgres_engine, "UNASKED", unasked)
    async with Proxy(database_url) as proxy:
        database = db.Database(proxy.url)
        sent = []
        for _ in range(2):
            proxy.statements.clear()
            async with db.scope():
                await (await db.session(database)).execute(text("SELECT 7"))
            sent.append(list(proxy.statements))
        assert sent[0][-3:] == ["BEGIN;", "SELECT 7", "COMMIT;"]
        assert sent[1] == [*(["SELECT 1"] if unasked == 0 else []), "BEGIN;", "SELECT 7", "COMMIT;"]
        assert proxy.connections == 1
        await database.dispose()


async def test_a_connection_that_the_server_has_just_closed_is_replaced(
    database: db.Database, postgres: Observer
) -> None:
    """No ping is needed to see that: its end has arrived."""
    async with db.scope():
        first = await (await db.session()).scalar(text("SELECT pg_backend_pid()"))
    await postgres.terminate_backends()
    await eventually(postgres.backends, equals=0)
    await asyncio.sleep(0)
    async with db.scope():
        assert await (await db.session()).scalar(text("SELECT pg_backend_pid()")) != first


async def test_pre_ping_can_be_switched_off(database_url: str) -> None:
    """With `pre_ping=False` a warm scope asks nothing before its BEGIN."""
    async with Proxy(database_url) as proxy:
        database = db.Database(proxy.url, pre_ping=False)
        for _ in range(2):
            proxy.statements.clear()
            async with db.scope():
                await (await db.session(database)).execute(text("SELECT 7"))
        assert proxy.statements == ["BEGIN;", "SELECT 7", "COMMIT;"]
        assert proxy.connections == 1
        await database.dispose()


async def test_engine_factory_is_called_for_each_host(database: db.Database, database_url: str, rows: Count) -> None:
    """A factory makes the engine for a host, on first use and for each new host; it is guarded like any other."""
    asked: list[str | None] = []

    def make_engine(host: str | None) -> sa_async.AsyncEngine:
        asked.append(host)
        return sa_async.create_async_engine(database_url)

    made = db.Database(engine=make_engine, host="one", default=True)
    assert asked == []
    await db.isolated(insert, "a")
    assert made.is_async
    assert not made.is_sqlite
    await db.isolated(insert, "b")
    assert asked == ["one"]
    await made.change_host("two")
    await db.isolated(insert, "c")
    assert asked == ["one", "two"]
    with pytest.raises(db.RawTransactionError):
        async with db.scope():
            await (await db.session()).execute(text("COMMIT"))
    assert await rows() == 3
    with pytest.raises(db.DatabaseURLError, match="no URL"):
        _ = made.sync
    await made.dispose()


class AuditedSync(sa_orm.Session):
    """A user's own class for the sync session inside."""

    audited = True


class Audited(sa_async.AsyncSession):
    """A user's own session class, on SQLAlchemy's."""

    sync_session_class = AuditedSync
    commits = 0

    async def commit(self) -> None:
        Audited.commits += 1
        await super().commit()

    async def count_notes(self) -> int:
        return int(await self.scalar(text("SELECT count(*) FROM note")) or 0)


async def test_users_session_class_is_kept_and_owned(database: db.Database, rows: Count) -> None:
    """A session class of the user's own, on SQLAlchemy's, keeps its methods and overrides, and is owned and guarded."""

    def make_sessions(engine: Any) -> sa_async.async_sessionmaker[Audited]:
        return sa_async.async_sessionmaker(engine, class_=Audited, expire_on_commit=False)

    own = db.Database(database.url, sessions=make_sessions, default=True)
    async with db.scope():
        session: Any = await db.session()
        assert {Audited, db.AsyncSession} <= set(type(session).__mro__)
        assert session.sync_session.audited
        await insert("a")
        assert await session.count_notes() == 1
    assert Audited.commits == 1
    assert await rows() == 1
    with pytest.raises(db.ScopeEndedError):
        await session.count_notes()
    await own.dispose()


async def test_subclass_of_our_session_is_used_as_it_is(database: db.Database) -> None:
    """A subclass of `db.AsyncSession` is used as it is."""

    class Ours(db.AsyncSession):
        pass

    own = db.Database(database.url, sessions=lambda engine: sa_async.async_sessionmaker(engine, class_=Ours))
    async with db.scope():
        assert type(await db.session(own)) is Ours
    await own.dispose()


async def test_users_sync_session_class_is_kept_and_owned(
    database: db.Database, sync_database_url: str, rows: Count
) -> None:
    """The same for a synchronous one."""

    class Own(sa_orm.Session):
        pass

    own: db.Database[db.Session] = db.Database(
        sync_database_url, sessions=lambda engine: sa_orm.sessionmaker(engine, class_=Own)
    )
    async with db.scope():
        session = await db.session(own)
        assert isinstance(session, Own)
        await asyncio.to_thread(session.execute, INSERT, {"words": "a"})
    assert await rows() == 1
    await own.dispose()


@pytest.mark.parametrize("given_by", ["maker", "class"])
async def test_sync_session_class_may_be_a_sessionmaker(database: db.Database, rows: Count, given_by: str) -> None:
    """`sync_session_class=sessionmaker()`: its options count, and its listeners are called, early and late ones."""
    heard: list[str] = []
    inner = sa_orm.sessionmaker(info={"shop": 7})

    class Own(sa_async.AsyncSession):
        sync_session_class = inner  # type: ignore[assignment]

    def make_sessions(engine: Any) -> sa_async.async_sessionmaker[Any]:
        if given_by == "class":
            return sa_async.async_sessionmaker(engine, class_=Own)
        return sa_async.async_sessionmaker(engine, sync_session_class=inner)

    own = db.Database(database.url, sessions=make_sessions, default=True)
    event.listen(inner, "before_commit", lambda _session: heard.append("early"))
    async with db.scope():
        session = await db.session()
        assert session.info == {"shop": 7}
        assert session.sync_session.owner is not None
        await insert("a")
        event.listen(inner, "before_commit", lambda _session: heard.append("late"))
    assert heard == ["early", "late"]
    assert await rows() == 1
    assert not isinstance(inner(), type(session.sync_session))
    await own.dispose()


async def test_sync_session_class_that_is_no_class_is_refused(database: db.Database) -> None:
    """In one line that says so."""
    own = db.Database(
        database.url, sessions=lambda engine: sa_async.async_sessionmaker(engine, sync_session_class=print)
    )
    async with db.scope():
        with pytest.raises(TypeError, match="built-in function print"):
            await db.session(own)
    await own.dispose()


async def test_database_bound_to_an_engine_never_disposes_it(
    database: db.Database, database_url: str, rows: Count, postgres: Observer
) -> None:
    """Sessions of a database that is bound to an engine use it, guarded; it is never disposed here."""
    engine = sa_async.create_async_engine(database_url)
    bound = db.Database(bind=engine, default=True)
    await db.isolated(insert, "a")
    with pytest.raises(db.RawTransactionError):
        async with db.scope():
            await (await db.session()).execute(text("COMMIT"))
    await bound.dispose()
    assert await postgres.backends("idle") == 1
    await db.isolated(insert, "b")
    assert await rows() == 2
    await engine.dispose()


async def test_database_bound_to_a_connection_joins_its_transaction(
    database: db.Database, database_url: str, rows: Count
) -> None:
    """Sessions of a database that is bound to a connection join its transaction: they commit and roll back in it."""
    engine = sa_async.create_async_engine(database_url)
    async with engine.connect() as connection:
        outer = await connection.begin()
        db.Database(bind=connection, default=True)
        await db.isolated(insert, "a")
        with pytest.raises(ZeroDivisionError):
            async with db.scope():
                await insert("b")
                raise ZeroDivisionError
        assert await connection.scalar(text("SELECT string_agg(words, '') FROM note")) == "a"
        await outer.rollback()
    assert await rows() == 0
    await engine.dispose()


async def test_database_needs_exactly_one_source() -> None:
    """A database is given as exactly one of URL, factory or bind."""
    with pytest.raises(db.DatabaseURLError, match="one of url, engine"):
        db.Database()
    with pytest.raises(db.DatabaseURLError, match="one of url, engine"):
        db.Database("postgresql://host/name", engine=lambda _: sa_async.create_async_engine("sqlite+aiosqlite://"))


async def test_before_session_may_set_the_sessions_arguments(
    database: db.Database, database_url: str, rows: Count
) -> None:
    """The hook may set the session's arguments, another engine to bind to among them; that one is guarded, too."""
    other = sa_async.create_async_engine(database_url, connect_args={"server_settings": {"application_name": "other"}})
    seen: list[db.Database[Any]] = []

    async def choose(database: db.Database[Any], arguments: dict[str, Any]) -> None:
        seen.append(database)
        arguments["bind"] = other
        arguments["info"] = {"chosen": True}

    hooked = db.Database(database.url, before_session=choose, default=True)
    async with db.scope():
        session = await db.session()
        assert session.info == {"chosen": True}
        assert await session.scalar(text("SHOW application_name")) == "other"
        await insert("a")
    with pytest.raises(db.RawTransactionError):
        async with db.scope():
            await (await db.session()).execute(text("COMMIT"))
    assert seen == [hooked, hooked]
    assert await rows() == 1
    await hooked.dispose()
    await other.dispose()


@asynccontextmanager
async def two_hosts(url: str) -> AsyncIterator[tuple[Proxy, Proxy]]:
    """The same server under two addresses."""
    async with AsyncExitStack() as stack:
        one, two = Proxy(url), Proxy(url)
        yield await stack.enter_async_context(one), await stack.enter_async_context(two)


def host_and_port(proxy: Proxy) -> str:
    url = make_url(proxy.url)
    return f"{url.host}:{url.port}"


async def test_change_of_host_leaves_sessions_in_flight_where_they_are(
    database: db.Database, database_url: str, rows: Count, postgres: Observer
) -> None:
    """New sessions go to the new host at once; those in flight end, and commit, where they began, and only then is the
    old host's last connection closed."""
    async with two_hosts(database_url) as (one, two):
        moving = db.Database(one.url, default=True)
        in_flight, go_on = asyncio.Event(), asyncio.Event()

        async def long_work() -> None:
            async with db.scope():
                await insert("before")
                in_flight.set()
                await go_on.wait()
                await insert("after")

        work = asyncio.create_task(long_work())
        await in_flight.wait()
        await moving.change_host(host_and_port(two))
        await db.isolated(insert, "new")
        assert (one.count("INSERT"), two.count("INSERT")) == (1, 1)
        assert await postgres.backends() == 2
        go_on.set()
        await work
        assert (one.count("INSERT"), two.count("INSERT")) == (2, 1)
        assert one.count("COMMIT") == two.count("COMMIT") == 1
        await eventually(postgres.backends, equals=1)
        assert await rows() == 3
        await moving.dispose()


async def test_missing_host_is_refused(database_url: str) -> None:
    """An empty host is refused, and changes nothing; a factory is not called without a host."""
    asked: list[str | None] = []

    def make_engine(host: str | None) -> sa_async.AsyncEngine:
        asked.append(host)
        return sa_async.create_async_engine(database_url)

    made = db.Database(engine=make_engine, host="one")
    await made.change_host("two")
    with pytest.raises(ValueError, match="names no host"):
        await made.change_host("")
    assert made.host == "two"
    with pytest.raises(ValueError, match="host= is empty"):
        db.Database(engine=make_engine, host="")
    async with db.scope():
        with pytest.raises(ValueError, match="give the Database host="):
            await db.session(db.Database(engine=make_engine))
    assert asked == []


def test_bind_of_a_wrong_type_is_refused_at_once() -> None:
    """`bind` takes an engine or a connection; anything else is a TypeError where it is given."""
    with pytest.raises(TypeError, match="not str"):
        db.Database(bind="postgresql://host/name")  # type: ignore[arg-type]


async def test_before_session_may_choose_the_host(database: db.Database, database_url: str, rows: Count) -> None:
    """The hook may change the host for the session that is about to be opened, and back."""
    async with two_hosts(database_url) as (one, two):
        hosts = [host_and_port(one), host_and_port(two), None]

        async def choose(database: db.Database[Any], _arguments: dict[str, Any]) -> None:
            await database.change_host(hosts.pop(0))

        moving = db.Database(one.url, before_session=choose, default=True)
        for words in ("a", "b", "c"):
            await db.isolated(insert, words)
        assert (one.count("INSERT"), two.count("INSERT")) == (2, 1)
        assert await rows() == 3
        await moving.dispose()


async def test_sync_twin_follows_a_change_of_host(database: db.Database, database_url: str, rows: Count) -> None:
    """The synchronous twin follows, whether it was used before or not."""
    async with two_hosts(database_url) as (one, two):
        for used_before in (True, False):
            moving = db.Database(one.url)

            async def write(words: str, database: db.Database[db.Session]) -> None:
                session = await db.session(database)
                await asyncio.to_thread(session.execute, INSERT, {"words": words})

            if used_before:
                await db.isolated(write, "a", moving.sync)
            await moving.change_host(host_and_port(two))
            await db.isolated(write, f"b {used_before}", moving.sync)
            await moving.dispose()
        assert (one.count("INSERT"), two.count("INSERT")) == (1, 2)


async def test_change_to_a_malformed_host_is_refused(database: db.Database) -> None:
    """A port that is no number is refused, and the database stays where it is."""
    with pytest.raises(db.DatabaseURLError, match="db-2:5432"):
        await database.change_host("db-2:fivethousand")
    await db.isolated(insert, "a")


async def test_change_of_host_does_not_wait_for_a_dead_host(database: db.Database, database_url: str) -> None:
    """A host that has stopped answering does not keep `change_host` waiting."""
    async with two_hosts(database_url) as (one, two):
        moving = db.Database(one.url, default=True)
        await db.isolated(insert, "a")
        one.blackhole()
        async with asyncio.timeout(3):
            await moving.change_host(host_and_port(two))
        await db.isolated(insert, "b")
        await moving.dispose()


async def test_dispose_closes_every_connection(database: db.Database, postgres: Observer, rows: Count) -> None:
    """H: after `dispose` there are 0 backends, those of the twin included; the next use opens the database again."""
    sync_database = database.sync
    for _ in range(2):
        async with db.scope():
            await (await db.session()).execute(text("SELECT 1"))
            await asyncio.to_thread((await db.session(sync_database)).execute, text("SELECT 1"))
        assert await postgres.backends() == 2
        await database.dispose()
        await eventually(postgres.backends, equals=0)
    await database.dispose()


async def test_dispose_lets_a_session_in_flight_end(database: db.Database, postgres: Observer, rows: Count) -> None:
    """A session in flight ends well after `dispose`, and then its connection is closed."""
    async with db.scope():
        await insert("a")
        await database.dispose()
        assert await postgres.backends() == 1
        await insert("b")
    await eventually(postgres.backends, equals=0)
    assert await rows() == 2


async def sleep_on_the_server() -> None:
    async with db.scope():
        await insert("a")
        await (await db.session()).execute(text("SELECT pg_sleep(60)"))


async def as_a_child(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(work())


@pytest.mark.parametrize("act", [sleep_on_the_server, lambda: as_a_child(sleep_on_the_server)], ids=["own", "child"])
async def test_dispose_waits_for_sessions_of_cancelled_tasks(
    database: db.Database, postgres: Observer, act: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    """A session whose task was cancelled a moment ago has ended, and the server has stopped, when `dispose` returns."""
    request = asyncio.create_task(act())
    await eventually(lambda: postgres.backends("active"), equals=1)
    request.cancel()
    await at_once(database.dispose())
    assert await postgres.backends("active") == 0
    assert request.done()
    await eventually(postgres.backends, equals=0)


async def test_dispose_waits_no_longer_than_its_limit(
    database: db.Database, postgres: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancelled task that does not let go of its session is waited for no longer than the limit."""
    monkeypatch.setattr(engines, "_CANCELLED_TIMEOUT", 0.1)
    has_session, let_go = asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        async with db.scope():
            await insert("a")
            has_session.set()
            try:
                await asyncio.sleep(60)
            finally:
                await let_go.wait()

    request = asyncio.create_task(stubborn())
    await has_session.wait()
    request.cancel()
    await at_once(database.dispose())
    assert not request.done()
    let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await request
    await eventually(postgres.backends, equals=0)


async def test_check_raises_the_reason_why_the_database_cannot_be_used(
    database: db.Database, database_url: str
) -> None:
    """`check` says what stands in the way: an unreachable server, a refusal by the server, or nothing."""
    await database.check()
    await database.sync.check()
    async with Proxy(database_url) as proxy:
        proxy.refuse()
        for driver in ("asyncpg", "psycopg"):
            away: db.Database[Any] = db.Database(make_url(proxy.url).set(drivername=f"postgresql+{driver}"))
            with pytest.raises(db.DatabaseUnreachableError, match="is it running, and is DATABASE_URL right"):
                await away.check()
    for driver in ("asyncpg", "psycopg"):
        unknown: db.Database[Any] = db.Database(
            make_url(database_url).set(drivername=f"postgresql+{driver}", database="nobodys")
        )
        with pytest.raises(DBAPIError, match="nobodys"):
            await unknown.check()


def test_engine_on_a_second_loop_is_refused_until_disposed(database_url: str) -> None:
    """H: an engine met by a second event loop is a named error; disposed on the first, it opens on the second."""
    database = db.Database(database_url, default=True)

    async def use() -> None:
        async with db.scope():
            await (await db.session()).execute(text("SELECT 1"))

    async def use_and_dispose() -> None:
        await use()
        await database.dispose()

    asyncio.run(use_and_dispose())
    with asyncio.Runner() as first:
        first.run(use())
        with asyncio.Runner() as second:
            for act in (use, database.check, database.dispose, lambda: database.change_host("elsewhere")):
                with pytest.raises(db.WrongLoopError, match=r"await database\.dispose\(\)"):
                    second.run(act())
        first.run(use_and_dispose())
    asyncio.run(use_and_dispose())


DRIVERS = ["asyncpg", "psycopg", "psycopg_async"]


async def insert_secret(database: db.Database[Any]) -> None:
    async with db.scope():
        session = await db.session(database)
        statement = text("INSERT INTO account VALUES (:name, :password)")
        values = {"name": None, "password": "hunter" + "2"}  # not as the traceback shows this line
        if isinstance(session, db.Session):
            await asyncio.to_thread(lambda: session.execute(statement, values))
        else:
            await session.execute(statement, values)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("hide", [True, False])
async def test_errors_hide_the_values_of_a_statement(
    database_url: str, postgres: Observer, driver: str, hide: bool
) -> None:
    """The values of a statement, such as a password, are in no error and no traceback, unless asked for."""
    await postgres.execute("CREATE TABLE account (name text NOT NULL, password text)")
    options = {} if hide else {"hide_parameters": False}
    database: db.Database[Any] = db.Database(database_url.replace("asyncpg", driver), engine_options=options)
    with pytest.raises(DBAPIError, match='null value in column "name"') as refused:
        await insert_secret(database)
    said = "".join(traceback.format_exception(refused.value))
    assert ("hunter2" in said) is not hide
    assert ("Failing row" in said) is not hide
    assert ("hunter2" in str(refused.value)) is not hide
    await database.dispose()


@pytest.mark.parametrize("driver", [*DRIVERS, "sqlite"])
async def test_null_pool_closes_each_connection_with_its_session(
    driver: str, database_url: str, sqlite_url: str
) -> None:
    """`poolclass=NullPool`: each session opens a connection, and closes it at its end; the twin does so, too."""
    url = sqlite_url if driver == "sqlite" else database_url.replace("asyncpg", driver)
    database: db.Database[Any] = db.Database(url, engine_options={"poolclass": NullPool})
    assert database.pool_size is None
    await database.check()
    await database.sync.check()
    async with db.scope():
        for session in (await db.session(database), await db.session(database.sync)):
            assert isinstance(session.get_bind().engine.pool, NullPool)
    await database.dispose()


ASYNC_DRIVERS = ["postgresql+asyncpg", "postgresql+psycopg_async", "sqlite+aiosqlite"]


@pytest.fixture(params=ASYNC_DRIVERS)
def async_url(request: pytest.FixtureRequest) -> str:
    """A database's URL, through each driver that belongs to an event loop."""
    if request.param.startswith("sqlite"):
        return str(request.getfixturevalue("sqlite_url"))
    return str(request.getfixturevalue("database_url")).replace("postgresql+asyncpg", request.param)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def new_loop(request: pytest.FixtureRequest) -> Any:
    return request.param


async def use(database: db.Database) -> None:
    async with db.scope():
        await (await db.session(database)).execute(text("SELECT 1"))


def test_each_loop_gets_connections_of_its_own(async_url: str, new_loop: Any) -> None:
    """A loop for each test, or `asyncio.run` twice: connections end with their loop, and the next one opens others."""
    database = db.Database(async_url)
    before = {*threading.enumerate()}
    for _ in range(3):
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(use(database))
        for thread in {*threading.enumerate()} - before:  # aiosqlite has one for each connection
            thread.join(timeout=20)
            assert not thread.is_alive()
        gc.collect()


def test_connections_end_with_their_loop(database_url: str) -> None:
    """They do not wait for the next use: once the loop is closed, the server has none of them."""
    database = db.Database(database_url)
    asyncio.run(use(database))
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with psycopg.connect(as_dsn(make_url(database_url))) as observer:
        assert observer.execute(others).fetchone() == (0,)


def test_connections_of_a_loop_that_was_just_closed_are_closed_at_the_next_use(async_url: str) -> None:
    """Where a loop is closed without `shutdown_asyncgens`, the next use closes what is left, without a warning."""
    database = db.Database(async_url)
    for _ in range(2):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(use(database))
        loop.close()
        gc.collect()
    asyncio.run(database.dispose())
    gc.collect()


def test_users_engine_without_a_pool_works_on_a_second_loop(database_url: str) -> None:
    """An engine of the user's own can be used on one loop after the other if it keeps no connections."""
    database = db.Database(bind=sa_async.create_async_engine(database_url, poolclass=NullPool))
    for _ in range(2):
        asyncio.run(use(database))
    engine = sa_async.create_async_engine(database_url)
    pooled = db.Database(bind=engine)

    async def use_and_close() -> None:
        await use(pooled)
        await engine.dispose()

    asyncio.run(use_and_close())
    with pytest.raises(db.WrongLoopError):
        asyncio.run(use(pooled))


async def backend() -> int:
    return int(await (await db.session()).scalar(text("SELECT pg_backend_pid()")) or 0)


@pytest.fixture
async def unasked(database: db.Database) -> AsyncIterator[db.Database]:
    """The default database without `pre_ping`, which would replace a broken connection and say nothing."""
    unasked = db.Database(database.url, pre_ping=False, default=True)
    yield unasked
    await unasked.dispose()


@pytest.mark.usefixtures("unasked")
async def test_forked_child_opens_its_own_engine(rows: Count) -> None:
    """H: a forked child opens an engine of its own, and leaves the parent's connections alone, garbage and all."""
    await db.isolated(insert, "parent")
    before = await db.isolated(backend)
    await asyncio.to_thread(run_in_child, lambda: asyncio.run(_child()))
    assert await db.isolated(backend) == before
    assert await rows() == 2


@pytest.mark.usefixtures("unasked")
async def test_child_forked_from_a_running_loop_leaves_the_parents_connections(rows: Count, postgres: Observer) -> None:
    """H: the same for a child that is forked in the middle of the loop, with connections idle and in a transaction."""
    async with db.scope():
        await insert("parent before")
        before = await db.isolated(backend)
        run_in_child(lambda: asyncio.run(_child()))
        assert await db.isolated(backend) == before
        await insert("parent after")
    assert await rows() == 3
    assert await postgres.backends() == 2


async def _child() -> None:
    gc.collect()
    async with db.scope():
        await insert("child")
    gc.collect()
    await db.default_database().dispose()


def run_in_child(work: Callable[[], None]) -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            asyncio._set_running_loop(None)
            # As in production: as an error it would keep asyncpg's finalizer from closing what is not the child's.
            warnings.simplefilter("ignore", ResourceWarning)
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - the child must not go on as a second test run
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
