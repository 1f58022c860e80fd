"""Sessions of SQLAlchemy's own, lent to a scope."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import create_engine, event, make_url, text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, sessionmaker

import db
from tests.db.conftest import INSERT, Count, insert
from tests.db.models import Note
from tests.servers import as_url

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(database_url)
    yield engine
    await engine.dispose()


@pytest.fixture
def sessions(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    return async_sessionmaker(engine, expire_on_commit=False)


async def test_session_of_sqlalchemys_own_can_be_lent(sessions: async_sessionmaker[AsyncSession], rows: Count) -> None:
    """The scope uses it, and its maker ends it. Afterwards it is what it was, with its listeners."""
    heard: list[str] = []
    async with sessions() as session:
        kinds = type(session), type(session.sync_session)
        event.listen(session.sync_session, "before_commit", lambda _session: heard.append("commit"))
        async with db.scope(session=session):
            assert await db.session() is session
            await insert("a")
        with pytest.raises(ZeroDivisionError):
            async with db.scope(session=session):
                (await db.session()).add(Note(words="b"))
                raise ZeroDivisionError
        assert (type(session), type(session.sync_session)) == kinds
        assert session.in_transaction()
        assert await rows() == 0
        await session.commit()
        assert await rows() == 2
        await session.execute(INSERT, {"words": "c"})
        session.add(Note(words="d"))
        await session.rollback()
    assert heard == ["commit"]
    assert await rows() == 2


async def test_lent_session_of_sqlalchemys_own_ends_early_as_any_other(
    sessions: async_sessionmaker[AsyncSession], rows: Count
) -> None:
    """`db.commit`, `db.rollback` and `atomic` act on it; and one user at a time is still the rule."""
    async with sessions() as session, db.scope(session=session):
        await insert("a")
        await db.commit()
        await insert("lost")
        await db.rollback()
        async with db.atomic():
            await insert("b")
        async with (await db.session()).begin_nested():
            await insert("c")
        waiting = asyncio.create_task((await db.session()).execute(text("SELECT pg_sleep(0.2)")))
        await asyncio.sleep(0.05)
        with pytest.raises(db.ConcurrentUseError):
            await insert("d")
        await waiting
        assert await rows() == 2
        await session.commit()
    assert await rows() == 3


async def test_lent_session_of_sqlalchemys_own_runs_no_callbacks_and_says_so(
    sessions: async_sessionmaker[AsyncSession],
) -> None:
    """Its COMMIT knows nothing of scopes; the error says what to do for a job."""
    async with sessions() as session, db.scope(session=session):
        with pytest.raises(db.UnownedSessionError, match=r"using\(session=session\)"):
            db.on_commit(print)


async def test_scoped_session_can_be_lent(sessions: async_sessionmaker[AsyncSession], rows: Count) -> None:
    """The scope uses the session that it stands for; also a scope inside a scope that was lent it."""
    scoped = async_scoped_session(sessions, scopefunc=asyncio.current_task)
    async with db.scope(session=scoped):
        assert await db.session() is scoped()
        await insert("a")
        async with db.scope(session=scoped):
            assert await db.session() is scoped()
            await insert("b")
        await insert("c")
    await scoped.commit()
    await scoped.remove()
    assert await rows() == 3


async def test_scopes_that_are_lent_one_session_may_overlap(
    sessions: async_sessionmaker[AsyncSession], rows: Count
) -> None:
    """The session is given back when the last of them has ended."""
    async with sessions() as session:
        kind = type(session)
        first, second = db.scope(session=session), db.scope(session=session)
        await first.__aenter__()

        async def overlap() -> None:
            async with second:
                await first.__aexit__(None, None, None)
                await insert("a")

        await asyncio.create_task(overlap())
        assert type(session) is kind
        await session.commit()
    assert await rows() == 1


async def test_session_inside_a_tests_transaction_can_be_lent(
    sessions: async_sessionmaker[AsyncSession], rows: Count
) -> None:
    """As context-async-sqlalchemy's `put_savepoint_session_in_ctx` does: the application's commits are savepoints."""
    async with sessions() as outer:
        inside: dict[str, Any] = {"bind": await outer.connection(), "join_transaction_mode": "create_savepoint"}
        async with sessions(**inside) as session, db.scope(session=session):
            await insert("a")
            await db.commit()
            await insert("b")
            await db.rollback()
            await db.close()
            await insert("c")
        assert await outer.scalar(text("SELECT count(*) FROM note")) == 1
        await outer.rollback()
    assert await rows() == 0


async def test_synchronous_session_of_sqlalchemys_own_can_be_lent(
    database: db.Database, database_url: str, rows: Count
) -> None:
    """For the database that it belongs to."""
    engine = create_engine(as_url(make_url(database_url), "psycopg"))
    with sessionmaker(engine)() as session:
        async with db.scope(session=session, database=database.sync):
            lent = await db.session(database.sync)
            assert lent is session
            await asyncio.to_thread(lent.execute, INSERT, {"words": "a"})
            assert await rows() == 0
        assert db.Session not in type(session).__mro__
        session.commit()
    assert await rows() == 1
    engine.dispose()


@pytest.mark.parametrize("given", [AsyncSession, Session, "session"])
async def test_what_is_no_session_cannot_be_lent(given: Any) -> None:
    """It is refused where it is given."""
    with pytest.raises(TypeError, match=r"not (type|str)"):
        db.scope(session=given)
