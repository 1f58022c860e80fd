"""`db.testing`: the commits of the code under test are not permanent."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI
from httpx import ASGITransport, AsyncClient
from sqlalchemy import AsyncAdaptedQueuePool, inspect, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine

import db
from db.asgi import SessionMiddleware, get_session
from db.session import savepoints as savepoint_stack
from db.testing import InterleavedTransactionsError, clear, prepare_sqlite, rolled_back, savepoints
from tests.servers import Observer

pytest_plugins = ["pytester"]

WRITE = text("INSERT INTO note VALUES (:words)")
COUNT = text("SELECT count(*) FROM note")


@contextlib.asynccontextmanager
async def with_notes(url: str, **options: Any) -> AsyncIterator[db.Database]:
    """A database with an empty table of notes, which must be empty at the end too."""
    database = db.Database(url, **options)
    async with db.atomic(database=database) as session:
        await session.execute(text("CREATE TABLE note (words text UNIQUE)"))
    try:
        yield database
        async with db.independent(database) as session:
            assert await session.scalar(COUNT) == 0, "something has stayed"
    finally:
        db.set_default_database(None)
        await database.dispose()


@pytest.fixture(params=["postgresql", "sqlite"])
async def database(request: pytest.FixtureRequest, database_url: str, sqlite_url: str) -> AsyncIterator[db.Database]:
    """The default database, on each kind of server."""
    async with with_notes(database_url if request.param == "postgresql" else sqlite_url, default=True) as database:
        yield database


@pytest.fixture
async def on_postgres(database_url: str) -> AsyncIterator[db.Database]:
    """The default database, on PostgreSQL: SQLite refuses a scope within one that writes."""
    async with with_notes(database_url, default=True) as database:
        yield database


async def write(words: str) -> None:
    await (await db.session()).execute(WRITE, {"words": words})


async def write_slowly(words: str) -> None:
    """Two statements with a pause between, so that others get in."""
    await write(f"{words} begun")
    await asyncio.sleep(0.01)
    await write(words)


async def fail_slowly() -> None:
    await write_slowly("never")
    raise ZeroDivisionError


async def swallow_an_error() -> None:
    await write("twice")
    with contextlib.suppress(IntegrityError):
        await write("twice")


async def notes() -> list[str]:
    async with db.scope():
        rows = await (await db.session()).scalars(text("SELECT words FROM note ORDER BY words"))
        return list(rows)


async def test_commits_of_a_rolled_back_session_vanish(database: db.Database) -> None:
    """Code that is given the session commits it and goes on to see its rows; afterwards they are gone."""
    async with rolled_back() as session:
        await session.execute(WRITE, {"words": "one"})
        await session.commit()
        await session.execute(WRITE, {"words": "two"})
        await session.rollback()
        assert await session.scalar(COUNT) == 1


async def test_commits_of_a_rolled_back_session_are_not_seen_outside(
    on_postgres: db.Database, postgres: Observer
) -> None:
    """What the code under test has committed is not seen from outside even while the test runs."""
    async with rolled_back() as session:
        await session.execute(WRITE, {"words": "one"})
        await session.commit()
        assert await postgres.fetchval("SELECT count(*) FROM note") == 0


async def test_rolled_back_session_may_be_lent_to_a_scope(database: db.Database) -> None:
    """A scope may be handed the session, for code that asks `session()` for it."""
    async with rolled_back(database) as session:
        async with db.scope(session=session):
            assert await db.session() is session
            await write("one")
            await db.commit()
        assert await session.scalar(COUNT) == 1


async def test_callbacks_run_at_the_commit_of_a_lent_session(database: db.Database) -> None:
    """Callbacks made in a scope that was handed the session run when the session is committed, and not before."""
    events: list[str] = []

    async def before(session: db.AsyncSession) -> None:
        events.append("before_commit")

    async with rolled_back() as session:
        async with db.scope(session=session):
            await write("one")
            db.before_commit(before)
            db.on_commit(lambda: events.append("on_commit"))
        assert events == []
        await session.commit()
        assert events == ["before_commit", "on_commit"]


async def test_transaction_of_a_lent_session_goes_on_after_the_scope(database: db.Database) -> None:
    """What a scope begins on its lender's session is the lender's transaction, which goes on after that scope."""
    async with savepoints():
        async with db.scope():
            session = await db.session()
            async with db.scope(session=session):
                await write("one")
            await write("two")
        async with db.independent() as session:
            async with db.scope(session=session):
                await session.execute(WRITE, {"words": "three"})
            await session.execute(WRITE, {"words": "four"})
            await session.commit()
            assert await session.scalar(COUNT) == 4


async def test_rolled_back_session_goes_on_after_an_error(database: db.Database) -> None:
    """After a failed statement and a rollback the session goes on, and sees its earlier commits."""
    async with rolled_back() as session:
        await session.execute(WRITE, {"words": "one"})
        await session.commit()
        with pytest.raises(IntegrityError):
            await session.execute(WRITE, {"words": "one"})
        await session.rollback()
        assert await session.scalar(COUNT) == 1


async def test_scopes_commit_and_leave_nothing(database: db.Database) -> None:
    """Scopes commit and see what earlier ones committed, one that fails leaves nothing, and at the end all is gone."""
    async with savepoints():
        async with db.scope():
            await write("one")
        async with db.scope():
            await write("two")
            await db.commit()
            await write("three")
            await db.rollback()
        with pytest.raises(ZeroDivisionError):
            async with db.scope():
                await fail_slowly()
        assert await notes() == ["one", "two"]
    assert await notes() == []


async def test_every_way_to_a_session_joins_the_transaction(database: db.Database) -> None:
    """`isolated`, `atomic`, `independent` and the scopes of other tasks join it as well."""
    async with savepoints():
        await db.isolated(write, "isolated")
        await asyncio.create_task(db.isolated(write, "task"))
        async with db.atomic() as session:
            await session.execute(WRITE, {"words": "atomic"})
        async with db.independent() as session:
            await session.execute(WRITE, {"words": "independent"})
            await session.commit()
            await session.execute(WRITE, {"words": "not committed"})
        assert await notes() == ["atomic", "independent", "isolated", "task"]


async def test_requests_commit_and_roll_back_in_the_transaction(database: db.Database) -> None:
    """Requests through `SessionMiddleware` commit and roll back as ever, ten at a time too."""
    app = FastAPI()
    app.add_middleware(SessionMiddleware)

    @app.post("/notes/{number}")
    async def create(number: int, session: Annotated[db.AsyncSession, Depends(get_session)]) -> None:
        await session.execute(WRITE, {"words": str(number)})
        await asyncio.sleep(0.01)
        await session.execute(WRITE, {"words": str(number % 5)})

    async with savepoints(), AsyncClient(transport=_transport(app), base_url="http://test") as client:
        responses = await asyncio.gather(*(client.post(f"/notes/{number}") for number in range(5, 15)))
        assert [response.status_code for response in responses].count(200) == 5
        assert len(await notes()) == 10


def _transport(app: Any) -> ASGITransport:
    return ASGITransport(app, raise_app_exceptions=False)


async def test_callbacks_run_at_each_commit(database: db.Database) -> None:
    """The on-commit callbacks of the code under test run when it commits, and vanish when it rolls back."""
    told: list[str] = []
    async with savepoints():
        async with db.scope():
            await write("one")
            db.on_commit(lambda: told.append("early"))
            await db.commit()
            assert told == ["early"]
            await write("two")
            db.on_commit(lambda: told.append("late"))
        with contextlib.suppress(ZeroDivisionError):
            async with db.scope():
                db.on_commit(lambda: told.append("never"))
                raise ZeroDivisionError
    assert told == ["early", "late"]


async def test_nested_scope_may_fail_by_itself(on_postgres: db.Database) -> None:
    """A scope inside one that is writing nests in its transaction: it may fail by itself, and goes on top."""
    async with savepoints():
        async with db.scope():
            await write("outer")
            await db.isolated(write, "inner")
            with contextlib.suppress(ZeroDivisionError):
                await db.isolated(fail_slowly)
            await write("outer again")
        assert await notes() == ["inner", "outer", "outer again"]


async def test_concurrent_scopes_take_turns(database: db.Database) -> None:
    """Of concurrent scopes each commits or rolls back its own work and no other's."""
    async with savepoints():
        results = await asyncio.gather(
            db.isolated(write_slowly, "one"),
            db.isolated(fail_slowly),
            db.isolated(write_slowly, "two"),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [type(None), ZeroDivisionError, type(None)]
        assert await notes() == ["one", "one begun", "two", "two begun"]


async def test_concurrent_scopes_inside_a_transaction_take_turns(on_postgres: db.Database) -> None:
    """The same inside a scope that is writing, which goes on when they have ended."""
    async with savepoints():
        async with db.scope():
            # In a task of its own, as `asyncio.wait_for` would: who asks is the scope and not the task.
            await asyncio.create_task(write("outer"))
            await asyncio.gather(
                db.isolated(write_slowly, "one"),
                db.isolated(fail_slowly),
                write_slowly("two"),
                return_exceptions=True,
            )
        assert await notes() == ["one", "one begun", "outer", "two", "two begun"]


async def test_scope_may_commit_before_isolated_work_ends(on_postgres: db.Database) -> None:
    """A scope commits while isolated work that it started goes on, and both are kept."""
    begun = asyncio.Event()

    async def write_on() -> None:
        await write("begun")
        begun.set()
        await asyncio.sleep(0.05)
        await write("ended")

    async with savepoints():
        async with db.scope():
            await write("outer")
            inner = asyncio.create_task(db.isolated(write_on))
            await begun.wait()
        await inner
        assert await notes() == ["begun", "ended", "outer"]


async def test_transactions_that_wait_for_each_other_are_a_named_error(
    database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that waits for one which sits open ends with an error that says what to do."""
    monkeypatch.setattr(savepoint_stack, "_WAIT_LIMIT", 0.05)
    written, go_on = asyncio.Event(), asyncio.Event()

    async def sit() -> None:
        await write("sitting")
        written.set()
        await go_on.wait()

    async with savepoints():
        sitting = asyncio.create_task(db.isolated(sit))
        await written.wait()
        with pytest.raises(InterleavedTransactionsError, match="commit or close the open one"):
            await db.isolated(write, "waiting")
        go_on.set()
        await sitting
        assert await notes() == ["sitting"]


async def test_swallowed_error_refuses_the_commit_of_a_savepoint(on_postgres: db.Database) -> None:
    """A transaction that the server has aborted is refused here as at a real COMMIT, and the next scope works."""
    async with savepoints():
        await db.isolated(write, "one")
        with pytest.raises(db.PoisonedTransactionError):
            await db.isolated(swallow_an_error)
        assert await notes() == ["one"]


async def test_each_named_database_gets_its_own_transaction(database_url: str, sqlite_url: str) -> None:
    """Each database that is named gets a transaction of its own; one that is not named is left alone."""
    async with (
        with_notes(database_url, default=True) as primary,
        with_notes(sqlite_url) as archive,
    ):
        async with savepoints(primary, archive), db.scope():
            for database in (primary, archive):
                await (await db.session(database)).execute(WRITE, {"words": "one"})
        async with savepoints(archive), db.scope():
            await write("for good")
        assert await notes() == ["for good"]
        async with db.scope():
            await (await db.session()).execute(text("DELETE FROM note"))


async def test_savepoints_sent_as_text_do_not_confuse_the_order(on_postgres: db.Database) -> None:
    """Savepoints sent as text do not confuse the order."""
    async with savepoints():
        async with db.scope():
            session = await db.session()
            for statement in ("SAVEPOINT mine", "ROLLBACK TO SAVEPOINT mine", "RELEASE SAVEPOINT mine"):
                await session.execute(text(statement))
            for statement in ("savepoint mine", "rollback to savepoint mine", "release savepoint mine"):
                await session.execute(text(statement))
            await write("one")
        assert await notes() == ["one"]


async def test_sync_sessions_join_where_their_database_is_named(on_postgres: db.Database) -> None:
    """Sync sessions, used in threads, join too where their database is named."""
    async with savepoints(on_postgres.sync):
        for words in ("one", "two"):
            async with db.scope():
                session = await db.session(on_postgres.sync)
                await asyncio.to_thread(session.execute, WRITE, {"words": words})
        async with db.scope():
            session = await db.session(on_postgres.sync)
            assert await asyncio.to_thread(session.scalar, COUNT) == 2
    async with rolled_back(on_postgres.sync) as sync_session:
        await asyncio.to_thread(sync_session.execute, WRITE, {"words": "one"})
        await asyncio.to_thread(sync_session.commit)


async def test_dispose_and_change_host_stay_in_the_transaction(on_postgres: db.Database) -> None:
    """An app that disposes of its database, or changes its host, in the middle does not get out."""
    async with savepoints():
        await db.isolated(write, "one")
        await on_postgres.dispose()
        await db.isolated(write, "two")
        await on_postgres.change_host("elsewhere")
        assert await notes() == ["one", "two"]
    await on_postgres.change_host(on_postgres.url.host if on_postgres.url and on_postgres.url.host else None)


async def test_sessions_are_of_the_databases_own_class(on_postgres: db.Database) -> None:
    """Sessions are of the class that the database's own factory makes."""

    class Ours(db.AsyncSession):
        pass

    database = db.Database(on_postgres.url, sessions=lambda engine: async_sessionmaker(engine, class_=Ours))
    async with rolled_back(database) as session:
        assert isinstance(session, Ours)
    async with savepoints(database), db.scope():
        assert isinstance(await db.session(database), Ours)
    await database.dispose()


async def test_code_on_another_loop_is_refused(database: db.Database) -> None:
    """Code under test that runs on another event loop is told so, rather than given this one's connection."""
    async with savepoints():
        with pytest.raises(db.WrongLoopError):
            await asyncio.to_thread(lambda: asyncio.run(db.isolated(write, "one")))


async def test_afterwards_commits_are_real(on_postgres: db.Database, postgres: Observer) -> None:
    """After the block the same database commits for good, and no backend holds a transaction."""
    async with savepoints():
        await db.isolated(write, "one")
    assert await postgres.idle_in_transaction() == 0
    await db.isolated(write, "two")
    assert await postgres.fetchval("SELECT string_agg(words, '') FROM note") == "two"
    await postgres.execute("DELETE FROM note")


ROOT = Path(__file__).parents[2]

CONFTEST = {
    "plugin": """
        import pytest

        pytest_plugins = ["db.testing"]

        @pytest.fixture
        def anyio_backend():
            return "asyncio"
    """,
    "import": """
        import pytest
        from db.testing import database, rolled_back_session, savepoint_database

        @pytest.fixture
        def anyio_backend():
            return "asyncio"
    """,
}

TESTS = """
    import db, pytest
    from sqlalchemy import text

    pytestmark = pytest.mark.{mark}

    @pytest.mark.parametrize("time", [1, 2])
    async def test_session(rolled_back_session, time):
        await rolled_back_session.execute(text("INSERT INTO note VALUES ('one')"))
        await rolled_back_session.commit()

    @pytest.mark.parametrize("time", [1, 2])
    async def test_scopes(savepoint_database, time):
        async with db.atomic(database=savepoint_database) as session:
            await session.execute(text("INSERT INTO note VALUES ('one')"))
        async with db.scope():
            assert await (await db.session()).scalar(text("SELECT count(*) FROM note")) == 1
"""


@pytest.mark.parametrize(
    ("way", "mark", "options"),
    [
        ("plugin", "asyncio", "-o asyncio_mode=strict -o asyncio_default_fixture_loop_scope=function"),
        ("import", "asyncio", "-o asyncio_mode=auto -o asyncio_default_fixture_loop_scope=function"),
        ("plugin", "anyio", "-o asyncio_mode=strict -o asyncio_default_fixture_loop_scope=function"),
        ("import", "anyio", "-p no:asyncio"),
    ],
)
async def test_fixtures_work_under_pytest_asyncio_and_anyio(
    on_postgres: db.Database,
    database_url: str,
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    mark: str,
    options: str,
) -> None:
    """The fixtures work under pytest-asyncio, strict or not, and under anyio: registered as a plugin or imported."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest(CONFTEST[way])
    pytester.makepyfile(TESTS.format(mark=mark))
    pytester.makeini("[pytest]\nfilterwarnings = error")
    result = await asyncio.to_thread(pytester.runpytest_subprocess, *options.split())
    result.assert_outcomes(passed=4)


async def note(words: str) -> None:
    """A note through a session outside of scopes, with a pause in its transaction."""
    async with db.independent() as session:
        await session.execute(WRITE, {"words": words})
        await asyncio.sleep(0.01)
        await session.commit()


async def count_notes() -> int:
    async with db.independent() as session:
        return int(await session.scalar(COUNT) or 0)


@pytest.mark.parametrize("in_scope", [True, False])
async def test_sessions_outside_of_scopes_take_turns(on_postgres: db.Database, in_scope: bool) -> None:
    """Those of `independent()` that run at once, wherever they are; a second one in the block of another goes first."""

    async def nested() -> None:
        async with db.independent() as outer:
            await outer.execute(WRITE, {"words": "outer"})
            await asyncio.gather(note("inner"), db.isolated(write_slowly, "isolated"))
            await outer.commit()

    async with savepoints():
        async with db.scope() if in_scope else contextlib.nullcontext():
            await asyncio.gather(note("a"), note("b"), nested(), note("c"))
        assert await count_notes() == 7


async def test_concurrent_work_of_all_kinds_takes_turns(on_postgres: db.Database) -> None:
    """The example of concurrent queries of context-async-sqlalchemy: one with the scope's session, four without."""

    async def committed_by_hand(words: str) -> None:
        await write(words)
        await db.commit()
        await db.close()

    async def in_a_block(words: str) -> None:
        async with db.independent() as session, session.begin():
            await session.execute(WRITE, {"words": words})

    async with savepoints():
        async with db.scope():
            await asyncio.gather(
                write("a"), db.isolated(write, "b"), db.isolated(committed_by_hand, "c"), in_a_block("d"), note("e")
            )
        assert await count_notes() == 5


async def test_interleaved_sessions_outside_of_scopes_are_an_error(
    on_postgres: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One connection cannot commit the earlier of two open transactions first. Nothing is written to the wrong one."""
    monkeypatch.setattr(savepoint_stack, "_WAIT_LIMIT", 0.05)
    with pytest.raises(InterleavedTransactionsError):
        async with savepoints(), db.independent() as first, db.independent() as second:
            await first.execute(WRITE, {"words": "first"})
            await second.execute(WRITE, {"words": "second"})
            await first.commit()


async def tables_of(database: db.Database[Any]) -> list[str]:
    async with db.independent(database) as session:
        if isinstance(session, db.Session):
            return await asyncio.to_thread(lambda: inspect(session.connection()).get_table_names())
        connection = await session.connection()
        names: list[str] = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
        return names


@pytest.mark.parametrize("through", ["async", "sync"])
async def test_clear_empties_a_database(database_url: str, sqlite_url: str, through: str) -> None:
    """Tables that refer to each other, with rows, and views: all are dropped, and nothing else is needed."""
    for url in (database_url, sqlite_url):
        made = db.Database(url)
        cleared: Any = made.sync if through == "sync" else made
        async with db.atomic(database=made) as session:
            for statement in (
                "CREATE TABLE parent (id INTEGER PRIMARY KEY)",
                "CREATE TABLE child (id INTEGER PRIMARY KEY REFERENCES parent)",
                'CREATE TABLE "Odd name" (id INTEGER PRIMARY KEY REFERENCES child)',
                "INSERT INTO parent VALUES (1)",
                "INSERT INTO child VALUES (1)",
                "CREATE VIEW seen AS SELECT id FROM child",
                "CREATE VIEW twice AS SELECT id FROM seen",
            ):
                await session.execute(text(statement))
        await clear(cleared)
        assert await tables_of(made) == []
        await clear(cleared)
        await made.dispose()


async def test_clear_drops_types_materialized_views_and_other_schemas(database_url: str) -> None:
    """On PostgreSQL; a schema that is not named stays as it is."""
    database = db.Database(database_url)
    statements = [
        "CREATE TYPE colour AS ENUM ('red')",
        "CREATE TABLE one (id int PRIMARY KEY, colour colour)",
        "CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM one",
        'CREATE SCHEMA "Other"',
        'CREATE TABLE "Other".two (id int REFERENCES one, next int UNIQUE)',
        'ALTER TABLE one ADD COLUMN two int REFERENCES "Other".two (next)',
        "CREATE SCHEMA kept",
        "CREATE TABLE kept.three (id int)",
    ]
    async with db.atomic(database=database) as session:
        for statement in statements:
            await session.execute(text(statement))
    await clear(database, schemas=["Other"])
    async with db.atomic(database=database) as session:
        left = await session.execute(
            text("SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname IN ('public', 'Other', 'kept')")
        )
        assert left.scalars().all() == ["kept.three"]
        for statement in statements[:3]:
            await session.execute(text(statement))
    await database.dispose()


def in_memory(**options: Any) -> AsyncEngine:
    """The engine of the recipe in docs/how-to/web.md."""
    engine = create_async_engine(
        "sqlite+aiosqlite://", poolclass=AsyncAdaptedQueuePool, pool_size=1, max_overflow=0, **options
    )
    prepare_sqlite(engine)
    return engine


async def test_sqlite_in_memory_is_bound_by_the_recipe() -> None:
    """Scopes take turns at its one connection; rollbacks, savepoints and `db.testing` work as on a file."""
    engine = in_memory()
    database = db.Database(bind=engine, default=True)
    async with db.atomic() as session:
        await session.execute(text("CREATE TABLE note (words text UNIQUE)"))

    async def count() -> int:
        async with db.independent() as session:
            return int(await session.scalar(COUNT) or 0)

    with pytest.raises(ZeroDivisionError):
        async with db.scope():
            async with (await db.session()).begin_nested():
                await write("lost")
            raise ZeroDivisionError
    assert await count() == 0
    ended = await asyncio.gather(
        db.isolated(write_slowly, "a"), db.isolated(fail_slowly), db.isolated(write_slowly, "b"), return_exceptions=True
    )
    assert [type(each) for each in ended] == [type(None), ZeroDivisionError, type(None)]
    assert await count() == 4
    async with db.scope():
        await write("c")
        with pytest.raises(db.NestedWriterError):
            await db.isolated(write, "d")
        await db.rollback()
    async with savepoints():
        await db.isolated(write, "e")
        assert await count() == 5
    assert await count() == 4
    db.set_default_database(None)
    await database.dispose()
    await engine.dispose()


async def test_engine_whose_sessions_share_one_transaction_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """As that of SQLAlchemy's default for SQLite in memory; the line says what takes its place."""
    engine = create_async_engine("sqlite+aiosqlite://")
    database = db.Database(bind=engine)
    async with db.independent(database) as session:
        await session.execute(text("SELECT 1"))
    assert "share one connection and one transaction: give it poolclass=" in caplog.text
    await engine.dispose()


async def test_prepare_sqlite_refuses_other_engines(database_url: str) -> None:
    """With a ValueError that names the kind."""
    with pytest.raises(ValueError, match="postgresql"):
        prepare_sqlite(create_async_engine(database_url))
