"""A scope: one session of each database, ended together."""

import asyncio
import contextvars
import gc
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from sqlalchemy import text

import db
from db.scope import current_scope, open_scope
from tests.db.conftest import INSERT, Count, insert
from tests.servers import Observer
from tests.waiting import eventually

pytestmark = pytest.mark.usefixtures("database")


async def test_leaving_a_scope_commits(rows: Count, postgres: Observer) -> None:
    """Writes in the scope are saved when it ends, and not before. No transaction is left open."""
    async with db.scope():
        await insert("a")
        assert await rows() == 0
        assert await postgres.idle_in_transaction() == 1
    assert await rows() == 1
    assert await postgres.idle_in_transaction() == 0


async def test_exception_rolls_the_scope_back(rows: Count, postgres: Observer) -> None:
    """A scope that is left by an exception saves nothing, and that exception is what comes out."""
    with pytest.raises(ZeroDivisionError):
        async with db.scope():
            await insert("a")
            raise ZeroDivisionError
    assert await rows() == 0
    assert await postgres.idle_in_transaction() == 0


async def test_children_get_the_session_of_their_scope() -> None:
    """Child coroutines and child tasks get the scope's session, at every call."""

    async def below() -> db.AsyncSession:
        return await db.session()

    async with db.scope():
        first = await db.session()
        assert await below() is first
        assert await asyncio.create_task(below()) is first
        assert set(await asyncio.gather(below(), below())) == {first}


async def test_concurrent_first_uses_get_one_session(database: db.Database) -> None:
    """Several child tasks that ask for the first session at the same moment get one."""

    async def look_up(_database: db.Database, _arguments: dict[str, object]) -> None:
        await asyncio.sleep(0)

    slow = db.Database(database.url, before_session=look_up)
    async with db.scope():
        sessions = await asyncio.gather(*(db.session(slow) for _ in range(5)))
        assert len(set(map(id, sessions))) == 1


async def test_session_takes_no_connection_before_its_first_statement(postgres: Observer) -> None:
    """A scope, and a session that is not used, take no connection."""
    async with db.scope():
        session = await db.session()
        assert await postgres.backends() == 0
        await session.execute(text("SELECT 1"))
        assert await postgres.idle_in_transaction() == 1


async def test_session_outside_of_a_scope_is_a_named_error() -> None:
    """Where no scope is open, `in_scope` says so and everything else is a named error that says what to do."""
    assert not db.in_scope()
    with pytest.raises(db.NoScopeError, match=r"async with db\.scope\(\)"):
        await db.session()
    for act in (db.commit, db.rollback, db.close):
        with pytest.raises(db.NoScopeError):
            await act()
    with pytest.raises(db.NoScopeError):
        db.on_commit(lambda: None)
    with pytest.raises(db.NoScopeError):
        db.before_commit(lambda _: asyncio.sleep(0))
    async with db.scope():
        assert db.in_scope()
    assert not db.in_scope()


async def test_nested_scope_has_its_own_session(rows: Count, postgres: Observer) -> None:
    """A scope inside another has sessions and connections of its own; then the outer one goes on."""
    async with db.scope():
        outer = await db.session()
        await insert("outer")
        async with db.scope():
            assert await db.session() is not outer
            await insert("inner")
            assert await postgres.idle_in_transaction() == 2
        assert await rows() == 1
        assert await db.session() is outer
    assert await rows() == 2


async def test_rollback_of_a_nested_scope_leaves_the_outer_one(rows: Count) -> None:
    """An inner scope that fails takes nothing of the outer one with it."""
    async with db.scope():
        await insert("outer")
        with pytest.raises(ZeroDivisionError):
            async with db.scope():
                await insert("inner")
                raise ZeroDivisionError
    assert await rows() == 1


async def test_join_uses_the_open_scope_or_opens_one(rows: Count) -> None:
    """`scope(join=True)` uses an open scope and leaves its end to its opener. Without one it opens a scope."""
    async with db.scope():
        outer = await db.session()
        async with db.scope(join=True):
            assert await db.session() is outer
            await insert("a")
        assert await rows() == 0
        await insert("b")
    assert await rows() == 2
    async with db.scope(join=True):
        await insert("c")
    assert await rows() == 3


async def test_scope_cannot_be_entered_twice(rows: Count) -> None:
    """One `scope()` object cannot be entered again while it is open, and the open one is unharmed."""
    once = db.scope()
    async with once:
        await insert("a")
        with pytest.raises(RuntimeError, match="entered already"):
            await once.__aenter__()
    assert await rows() == 1


async def test_scope_refuses_arguments_that_exclude_each_other(database: db.Database) -> None:
    """Arguments of `scope` that would have to be ignored are refused."""
    with pytest.raises(TypeError, match="give the session"):
        db.scope(database=database)
    async with db.scope():
        with pytest.raises(TypeError, match="cannot join"):
            db.scope(join=True, session=await db.session())


async def test_scope_does_not_end_a_lent_session(rows: Count) -> None:
    """A scope that was handed a session uses it and leaves its end to the lender, also when the scope fails."""
    async with db.independent() as lent:
        async with db.scope(session=lent):
            assert await db.session() is lent
            await insert("a")
        with pytest.raises(ZeroDivisionError):
            async with db.scope(session=lent):
                await insert("b")
                raise ZeroDivisionError
        assert lent.in_transaction()
        assert await rows() == 0
        await lent.commit()
    assert await rows() == 2


async def test_callbacks_of_a_lent_session_run_at_the_lenders_commit() -> None:
    """Callbacks for a lent session run at the lender's commit, not at the scope's end."""
    told: list[str] = []

    async def check(_session: db.AsyncSession) -> None:
        told.append("before")

    async with db.scope():
        outer = await db.session()
        async with db.scope(session=outer):
            await insert("a")
            db.on_commit(lambda: told.append("on"))
            db.before_commit(check)
        assert told == []
    assert told == ["before", "on"]


async def test_scope_in_a_generator_closed_elsewhere_rolls_back(rows: Count, postgres: Observer) -> None:
    """C5: a scope inside an async generator that another task, in another context, closes: rolled back, no error."""

    async def numbers() -> AsyncIterator[int]:
        async with db.scope():
            await insert("a")
            yield 1

    generator = numbers()
    assert await anext(generator) == 1
    closing = asyncio.create_task(generator.aclose(), context=contextvars.Context())  # type: ignore[attr-defined]
    await closing
    assert await rows() == 0
    assert await postgres.idle_in_transaction() == 0
    with pytest.raises(db.ScopeEndedError):
        await db.session()
    assert not db.in_scope()
    async with db.scope():
        await insert("b")
    assert await rows() == 1


async def test_scope_in_a_generator_gives_the_context_back() -> None:
    """A generator with a scope inside, used to its end, leaves the caller in the caller's own scope."""

    async def numbers() -> AsyncIterator[int]:
        async with db.scope():
            yield 1

    async with db.scope():
        mine = await db.session()
        async for _ in numbers():
            pass
        assert await db.session() is mine


async def test_ended_scope_keeps_no_sessions(database: db.Database) -> None:
    """A task that outlives its scope, and so keeps it in its context, does not keep the scope's sessions alive."""
    go_on = asyncio.Event()
    async with db.scope():
        await insert("a")
        session = weakref.ref(await db.session())
        outlives = asyncio.create_task(go_on.wait())
    gc.collect()
    assert session() is None
    go_on.set()
    await outlives


async def test_session_opened_while_the_scope_ends_is_refused(database: db.Database, postgres: Observer) -> None:
    """A child whose session is still being opened when the scope ends gets an error; no engine stays leased."""
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(_database: db.Database, _arguments: dict[str, object]) -> None:
        entered.set()
        await go_on.wait()

    slow = db.Database(database.url, before_session=slowly)
    async with db.scope():
        child = asyncio.create_task(db.session(slow))
        await entered.wait()
    go_on.set()
    with pytest.raises(db.ScopeEndedError):
        await child
    await slow.dispose()
    assert slow._open is None
    await eventually(postgres.backends, equals=0)


async def test_failing_before_session_hook_is_the_callers_error(database: db.Database, rows: Count) -> None:
    """A `before_session` hook that raises is the caller's error; the scope goes on, and the next try may succeed."""
    fail = True

    async def hook(_database: db.Database, _arguments: dict[str, object]) -> None:
        if fail:
            raise LookupError("no host is up")

    hooked = db.Database(database.url, before_session=hook, default=True)
    async with db.scope():
        with pytest.raises(LookupError, match="no host is up"):
            await db.session()
        fail = False
        await insert("a")
    assert await rows() == 1
    await hooked.dispose()


async def test_scope_on_another_loop_is_refused() -> None:
    """A scope that is carried to another event loop is a named error there."""

    def elsewhere() -> None:
        asyncio.run(db.session())

    async with db.scope():
        with pytest.raises(db.WrongLoopError, match="another event loop"):
            await asyncio.to_thread(elsewhere)


async def test_open_scope_gives_none_where_current_scope_raises() -> None:
    """`open_scope` gives the innermost open scope or None; `current_scope` raises instead."""
    assert open_scope() is None
    with pytest.raises(db.NoScopeError):
        current_scope()
    async with db.scope() as outer:
        async with db.scope() as inner:
            assert open_scope() is current_scope() is inner
        assert open_scope() is current_scope() is outer
        assert not inner.is_open


async def test_orphan_of_an_ended_scope_can_do_nothing(rows: Count, postgres: Observer) -> None:
    """C3: a child task that outlives its scope can neither ask for a session, nor use one, nor add to it: 0 rows."""
    go_on = asyncio.Event()

    uses: list[Callable[[db.AsyncSession], Any]] = [
        lambda _: db.session(),
        lambda session: session.execute(INSERT, {"words": "orphan"}),
        lambda session: session.connection(),
        lambda session: session.begin().start(),
        lambda session: session.run_sync(lambda inner: inner.execute(text("SELECT 1"))),
        lambda session: session.commit(),
        lambda session: session.rollback(),
        lambda session: session.stream(text("SELECT 1")),
        lambda _: db.commit(),
        lambda _: db.on_commit(lambda: None),
    ]

    async def orphan(use: Callable[[db.AsyncSession], Any]) -> None:
        mine = await db.session()
        await go_on.wait()
        await use(mine)

    async with db.scope():
        children = [asyncio.create_task(orphan(use)) for use in uses]
        await asyncio.sleep(0)
    go_on.set()
    for child, error in zip(children, await asyncio.gather(*children, return_exceptions=True), strict=True):
        assert isinstance(error, db.ScopeEndedError), (child, error)
    assert await rows() == 0
    assert await postgres.idle_in_transaction() == 0
