"""`atomic`, `isolated`, `independent`, and ending early."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, get_args

import pytest
from sqlalchemy import text
from sqlalchemy.exc import InvalidRequestError

import db
from db.sessions import Current
from tests.db.conftest import INSERT, Count, insert
from tests.db.models import Note
from tests.servers import Observer
from tests.waiting import AT_ONCE, eventually

pytestmark = pytest.mark.usefixtures("database")

MODES: tuple[Current, ...] = get_args(Current)


@pytest.mark.parametrize("mode", MODES)
async def test_atomic_outside_of_a_scope_opens_one(mode: Current, rows: Count) -> None:
    """Outside a scope, in every mode, the block is a scope of its own: committed, or rolled back on an error."""
    async with db.atomic(mode) as session:
        assert await db.session() is session
        await insert("a")
    assert await rows() == 1
    with pytest.raises(ZeroDivisionError):
        async with db.atomic(mode):
            await insert("b")
            raise ZeroDivisionError
    assert await rows() == 1
    assert not db.in_scope()


@pytest.mark.parametrize("mode", MODES)
async def test_atomic_commits_its_own_transaction(mode: Current, rows: Count) -> None:
    """In a scope without an open transaction the block, in every mode, is a transaction that ends with it."""
    async with db.scope():
        async with db.atomic(mode) as session:
            assert await db.session() is session
            await insert("a")
        assert await rows() == 1
        with pytest.raises(ZeroDivisionError):
            async with db.atomic(mode):
                await insert("b")
                raise ZeroDivisionError
        await insert("c")
    assert await rows() == 2


OUTCOMES: dict[str, dict[str, str]] = {
    # What is saved: when all goes well after the block, when the block fails, when the scope fails after the block.
    "commit": {"well": "before block after", "block fails": "before after", "scope fails": "before block"},
    "rollback": {"well": "block after", "block fails": "after", "scope fails": "block"},
    "append": {"well": "before block after", "block fails": "after", "scope fails": "before block"},
    "join": {"well": "before block after", "block fails": "before block after", "scope fails": ""},
    "savepoint": {"well": "before block after", "block fails": "before after", "scope fails": ""},
}


async def begin_by_statement() -> None:
    await insert("before")


async def begin_by_callback() -> None:
    """As an enqueued job does."""

    async def before(session: db.AsyncSession) -> None:
        await session.execute(INSERT, {"words": "before"})

    db.before_commit(before)


@pytest.mark.parametrize("begin", [begin_by_statement, begin_by_callback])
@pytest.mark.parametrize("outcome", ["well", "block fails", "scope fails"])
@pytest.mark.parametrize("mode", OUTCOMES)
async def test_atomic_treats_an_open_transaction_as_its_mode_says(
    mode: Current, outcome: str, begin: Callable[[], Awaitable[None]], postgres: Observer
) -> None:
    """The treatment of an open transaction, and of the block, by each mode, as the saved rows show.

    What waits for the COMMIT opens one, too, before the first statement.
    """
    with contextlib.suppress(ZeroDivisionError):
        async with db.scope():
            await begin()
            with contextlib.suppress(LookupError):
                async with db.atomic(mode):
                    await insert("block")
                    if outcome == "block fails":
                        raise LookupError
            await insert("after")
            if outcome == "scope fails":
                raise ZeroDivisionError
    saved = [row["words"] for row in await postgres.fetch("SELECT words FROM note ORDER BY id")]
    assert sorted(saved) == sorted(OUTCOMES[mode][outcome].split())
    assert await postgres.idle_in_transaction() == 0


async def test_atomic_refuses_an_open_transaction(rows: Count) -> None:
    """`atomic("raise")` finds the open transaction, says what can be done, and leaves it as it is."""
    async with db.scope():
        await insert("a")
        with pytest.raises(db.TransactionOpenError, match=r"db\.commit\(\) or db\.rollback\(\)") as refused:
            async with db.atomic("raise"):
                await insert("never")
        assert isinstance(refused.value, InvalidRequestError)
    assert await rows() == 1


async def test_atomic_counts_pending_objects_as_a_transaction(rows: Count) -> None:
    """Objects that were added and not yet flushed count as an open transaction."""
    async with db.scope():
        (await db.session()).add(Note(words="a"))
        with pytest.raises(db.TransactionOpenError):
            async with db.atomic("raise"):
                pass
        async with db.atomic("rollback"):
            await insert("b")
    assert await rows() == 1


async def test_atomic_acts_on_the_database_that_it_is_given(database: db.Database, rows: Count) -> None:
    """`atomic` works on the database that it is given, and leaves the others alone."""
    other = db.Database(database.url)
    async with db.scope():
        await insert("default")
        async with db.atomic(database=other) as session:
            await session.execute(INSERT, {"words": "other"})
        assert await rows() == 1
    assert await rows() == 2
    await other.dispose()


@pytest.mark.parametrize("mode", OUTCOMES)
async def test_atomic_works_on_a_sync_session(
    mode: Current, sync_database: db.Database[db.Session], postgres: Observer
) -> None:
    """Every mode works on a synchronous session as well."""
    async with db.scope():
        session = await db.session(sync_database)
        await asyncio.to_thread(session.execute, INSERT, {"words": "before"})
        async with db.atomic(mode, database=sync_database) as same:
            assert same is session
            await asyncio.to_thread(session.execute, INSERT, {"words": "block"})
        with pytest.raises(LookupError):
            async with db.atomic(mode if mode == "savepoint" else "commit", database=sync_database):
                await asyncio.to_thread(session.execute, INSERT, {"words": "failed"})
                raise LookupError
    saved = [row["words"] for row in await postgres.fetch("SELECT words FROM note ORDER BY id")]
    assert " ".join(saved) == OUTCOMES[mode]["well"].removesuffix(" after")


async def test_isolated_commits_whatever_becomes_of_the_caller(rows: Count, postgres: Observer) -> None:
    """`isolated` runs `fn` in a scope of its own, commits it independently of the caller, and returns its result."""

    async def write(words: str, *, twice: bool) -> str:
        await insert(words)
        return words * (1 + twice)

    with pytest.raises(ZeroDivisionError):
        async with db.scope():
            await insert("outer")
            assert await db.isolated(write, "inner", twice=True) == "innerinner"
            assert await rows() == 1
            raise ZeroDivisionError
    assert await rows() == 1


async def test_isolated_rolls_back_only_its_own_work(rows: Count) -> None:
    """An isolated function that raises rolls back its own work, and the caller can go on."""

    async def fail() -> None:
        await insert("inner")
        raise ZeroDivisionError

    async with db.scope():
        await insert("outer")
        with pytest.raises(ZeroDivisionError):
            await db.isolated(fail)
    assert await rows() == 1


async def test_isolated_has_a_context_of_its_own(rows: Count) -> None:
    """It sees a copy of the caller's context variables; what it sets, its child tasks see, and the caller does not."""
    user = ContextVar[str]("user")
    seen: list[str] = []

    async def child() -> None:
        await insert(user.get())

    async def fn() -> None:
        seen.append(user.get())
        user.set("inner")
        await asyncio.sleep(0)
        await asyncio.create_task(child())
        seen.append(user.get())

    user.set("outer")
    task = asyncio.current_task()
    async with db.scope():
        await insert("a")
        await db.isolated(fn)
        assert user.get() == "outer"
        await db.isolated(asyncio.sleep, 0)
        assert asyncio.current_task() is task
        await db.rollback()
    assert seen == ["outer", "inner"]
    assert await rows() == 1


async def test_isolated_that_is_closed_before_its_end_is_rolled_back(rows: Count) -> None:
    """As a task that its loop drops at the end: what was isolated is left in the right context."""
    user = ContextVar[str]("user", default="none")
    left: list[str] = []

    async def fn() -> None:
        user.set("inner")
        try:
            await asyncio.Event().wait()
        finally:
            left.append(user.get())

    running = db.isolated(fn)
    running.send(None)
    running.close()
    assert left == ["inner"]


async def test_isolated_queries_run_at_once() -> None:
    """Isolated queries run concurrently: three that all wait for each other, each in its transaction, do meet."""
    meeting = asyncio.Barrier(3)

    async def meet(number: int) -> Any:
        session = await db.session()
        await session.execute(text("SELECT 1"))
        await meeting.wait()
        return await session.scalar(text(f"SELECT {number}"))

    async with asyncio.timeout(AT_ONCE), db.scope():
        assert await asyncio.gather(*(db.isolated(meet, number) for number in range(3))) == [0, 1, 2]


async def test_independent_keeps_only_what_was_committed(rows: Count, postgres: Observer) -> None:
    """`independent` gives a session outside of any scope. Committed work stays, the rest is rolled back."""
    async with db.independent() as session:
        assert not db.in_scope()
        await session.execute(INSERT, {"words": "a"})
        await session.commit()
        await session.execute(INSERT, {"words": "b"})
    assert await rows() == 1
    assert await postgres.idle_in_transaction() == 0
    with pytest.raises(db.ScopeEndedError):
        await session.execute(INSERT, {"words": "c"})


async def test_independent_is_not_ended_by_the_scope(rows: Count) -> None:
    """Inside a scope it is another session, which the scope's end does not touch, nor the other way round."""
    async with db.independent() as session:
        async with db.scope():
            assert await db.session() is not session
            await insert("scope")
        await session.execute(INSERT, {"words": "independent"})
        await session.commit()
    assert await rows() == 2
    with pytest.raises(ZeroDivisionError):
        async with db.independent() as session:
            await session.execute(INSERT, {"words": "c"})
            raise ZeroDivisionError
    assert await rows() == 2


async def test_closing_the_session_frees_its_connection(database: db.Database, rows: Count, postgres: Observer) -> None:
    """After `await session.close()` the connection is free for others; the session takes a new one when used."""
    small = db.Database(database.url, pool_size=1, pool_timeout=0.2, default=True)
    async with db.scope():
        session = await db.session()
        await insert("a")
        await session.commit()
        await insert("lost")
        await session.close()
        assert await postgres.idle_in_transaction() == 0
        await db.isolated(insert, "meanwhile")
        assert await db.session() is session
        await insert("b")
    assert await rows() == 3
    await small.dispose()


@pytest.mark.parametrize("end", ["session", "db", "reset", "async with"])
async def test_early_close_rolls_back_and_the_session_goes_on(end: str, rows: Count, postgres: Observer) -> None:
    """Every way of closing early rolls back uncommitted work, and the scope goes on with the same session."""
    async with db.scope():
        session = await db.session()
        await insert("lost")
        match end:
            case "session":
                await session.close()
            case "db":
                await db.close()
            case "reset":
                await session.reset()
            case "async with":
                async with session:
                    pass
        assert await postgres.idle_in_transaction() == 0
        await insert("b")
    assert await rows() == 1


@pytest.mark.parametrize("end", ["session", "db"])
async def test_early_commit_and_rollback_stand(end: str, rows: Count) -> None:
    """Early commits and rollbacks stand, however the scope ends."""
    with pytest.raises(ZeroDivisionError):
        async with db.scope():
            session = await db.session()
            target: Any = session if end == "session" else db
            await insert("a")
            await target.commit()
            assert await rows() == 1
            await insert("b")
            await target.rollback()
            await insert("c")
            raise ZeroDivisionError
    assert await rows() == 1


async def test_has_committed_tells_of_an_early_commit() -> None:
    """`has_committed` tells whether a scope has committed early, and goes on telling after its end."""
    told: list[bool] = []
    async with db.scope() as here:
        for end in (db.rollback, db.commit):
            await insert("a")
            told.append(here.has_committed)
            await end()
            told.append(here.has_committed)
    assert [*told, here.has_committed] == [False, False, False, True, True]


async def test_begin_block_works_in_a_scope(rows: Count) -> None:
    """SQLAlchemy's own `session.begin()` block works inside a scope: committed at its end, rolled back on an error."""
    async with db.scope():
        session = await db.session()
        async with session.begin() as transaction:
            await insert("a")
            assert transaction.is_active
        assert await rows() == 1
        with pytest.raises(ZeroDivisionError):
            async with session.begin():
                await insert("b")
                raise ZeroDivisionError
        async with session.begin():
            await insert("c")
            await session.rollback()
        transaction = await session.begin()
        await insert("d")
        await transaction.commit()
        transaction = await session.begin()
        await insert("e")
        await transaction.rollback()
        savepoint = await session.begin_nested()
        await insert("f")
        await savepoint.rollback()
        savepoint = await session.begin_nested()
        await insert("g")
        await savepoint.commit()
    assert await rows() == 3


async def test_session_without_an_owner_works_as_sqlalchemys(
    database: db.Database, rows: Count, postgres: Observer
) -> None:
    """A `db.AsyncSession` without an owner commits, rolls back and closes as SQLAlchemy's does."""
    from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

    engine = create_async_engine(str(database.url.render_as_string(False)) if database.url else "")
    make = async_sessionmaker(engine, class_=db.AsyncSession)
    async with make() as session:
        await session.execute(INSERT, {"words": "a"})
        await session.commit()
        await session.execute(INSERT, {"words": "b"})
        await session.rollback()
        async with session.begin():
            await session.execute(INSERT, {"words": "c"})
        with pytest.raises(ZeroDivisionError):
            async with session.begin():
                await session.execute(INSERT, {"words": "d"})
                raise ZeroDivisionError
        await session.execute(INSERT, {"words": "e"})
        await session.invalidate()
    async with make.begin() as session:
        await session.execute(INSERT, {"words": "f"})
    assert await rows() == 3
    await engine.dispose()


async def test_invalidate_rolls_back_and_the_session_goes_on(rows: Count, postgres: Observer) -> None:
    """`session.invalidate()` rolls back with the connection; the session goes on with a new one."""
    told: list[str] = []
    async with db.scope():
        session = await db.session()
        await insert("a")
        db.on_commit(lambda: told.append("a"))
        first = await session.scalar(text("SELECT pg_backend_pid()"))
        await session.invalidate()
        assert await session.scalar(text("SELECT pg_backend_pid()")) != first
        await insert("b")
    assert await rows() == 1
    assert told == []
    await eventually(postgres.backends, equals=1)


def test_every_public_name_has_a_docstring() -> None:
    """Every public name of `db` has a docstring of its own."""
    without: list[str] = []
    for name in db.__all__:
        thing: Callable[..., object] = getattr(db, name)
        if not (thing.__doc__ or "").strip() or thing.__doc__ == getattr(thing.__class__, "__doc__", None):
            without.append(name)
    assert without == []
