"""Code as people wrote it for other session libraries, in the words of docs/moving/from-context-async-sqlalchemy.md."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

import db
from tests.db.conftest import INSERT, Count, insert

COUNT = text("SELECT count(*) FROM note")


async def test_begin_block_of_an_independent_session_commits_at_its_end(database: db.Database, rows: Count) -> None:
    """And rolls back if it raises, inside a scope or outside of it."""
    async with db.independent(database) as session, session.begin():
        await session.execute(INSERT, {"words": "a"})
    async with db.scope():
        with pytest.raises(ZeroDivisionError):
            async with db.independent(database) as session, session.begin():
                await session.execute(INSERT, {"words": "b"})
                raise ZeroDivisionError
    assert await rows() == 1


async def test_in_scope_says_whether_a_scope_is_open(database: db.Database) -> None:
    """In the scope, in its child tasks, and in isolated functions; not outside, and not after its end."""

    async def ask() -> bool:
        return db.in_scope()

    seen = [db.in_scope()]
    async with db.scope():
        seen += [db.in_scope(), await asyncio.create_task(ask())]
        late = asyncio.create_task(ask())
    seen += [await db.isolated(ask), await late, db.in_scope()]
    assert seen == [False, True, True, True, False, False]


async def test_options_of_sessions_come_from_a_sessionmaker(database: db.Database) -> None:
    """`sessions=` makes one from the engine; what it says holds for each session."""
    own = db.Database(database.url, sessions=lambda engine: async_sessionmaker(engine, info={"shop": 7}))
    async with db.scope():
        assert (await db.session(own)).info == {"shop": 7}
    await own.dispose()


async def test_driver_of_the_url_names_the_kind_of_session(sync_database_url: str) -> None:
    """psycopg's two names give the two kinds of sessions."""
    made: list[db.Database[Any]] = [
        db.Database(sync_database_url),
        db.Database(sync_database_url.replace("+psycopg", "+psycopg_async")),
    ]
    async with db.scope():
        plain, asynchronous = [await db.session(each) for each in made]
        assert isinstance(plain, db.Session)
        assert isinstance(asynchronous, db.AsyncSession)
    for each in made:
        await each.dispose()


async def test_sessions_on_a_tests_connection_are_rolled_back_with_it(
    table: None, database_url: str, rows: Count
) -> None:
    """One connection for the application and the test, a savepoint around each test. The application may roll back."""
    engine = create_async_engine(database_url)
    async with engine.connect() as connection:
        await connection.begin()
        bound = db.Database(bind=connection, default=True)
        async with AsyncSession(connection, expire_on_commit=False) as session:
            await session.execute(INSERT, {"words": "base"})
            await session.commit()
        for _ in range(2):
            around = await connection.begin_nested()
            async with db.scope():
                with pytest.raises(IntegrityError):
                    await insert("base")
                await db.rollback()
                await insert("works now")
            await db.isolated(insert, "more")
            async with AsyncSession(connection) as session:
                assert await session.scalar(COUNT) == 3
            await around.rollback()
        assert await connection.scalar(COUNT) == 1
        await bound.dispose()
    await engine.dispose()
    assert await rows() == 0
