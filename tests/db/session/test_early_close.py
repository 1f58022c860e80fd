"""A session that was closed early is like a new one at its next use, with the hook asked and the engine of now."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

import db
from db.testing import rolled_back
from tests.db.conftest import INSERT, Count
from tests.db.models import Note
from tests.servers import Observer, as_url


class Moved:
    """A database whose engine factory notes its hosts, and whose hook notes the host of each session."""

    def __init__(self, url: str, *, has_hook: bool = True, is_sync: bool = False) -> None:
        self.engines: list[str | None] = []
        self.asked: list[str | None] = []
        self._url = url
        self._is_sync = is_sync
        hook = self._hook if has_hook else None
        self.database: db.Database[Any] = db.Database(engine=self._engine, host="old", before_session=hook)

    def _engine(self, host: str | None) -> Any:
        self.engines.append(host)
        return (
            create_engine(as_url(make_url(self._url), "psycopg")) if self._is_sync else create_async_engine(self._url)
        )

    async def _hook(self, database: db.Database[Any], arguments: dict[str, Any]) -> None:
        self.asked.append(database.host)
        arguments["info"] = {"host": database.host}


@asynccontextmanager
async def in_scope(database: db.Database[Any]) -> AsyncIterator[Any]:
    async with db.scope():
        yield await db.session(database)


def closed_by_db(_session: Any, database: db.Database[Any]) -> Awaitable[None]:
    return db.close(database)


def closed_by_itself(session: Any, _database: db.Database[Any]) -> Awaitable[None]:
    result: Awaitable[None] = session.close()
    return result


@pytest.mark.parametrize(
    ("opened", "close", "asks_again"),
    [
        pytest.param(in_scope, closed_by_db, True, id="db.close and db.session"),
        pytest.param(in_scope, closed_by_db, False, id="db.close and the session that is held"),
        pytest.param(in_scope, closed_by_itself, True, id="session.close and db.session"),
        pytest.param(in_scope, closed_by_itself, False, id="session.close and the session that is held"),
        pytest.param(db.independent, closed_by_itself, False, id="independent"),
    ],
)
@pytest.mark.parametrize("has_hook", [True, False])
async def test_next_use_after_an_early_close_is_on_the_host_of_now(
    table: None,
    database_url: str,
    rows: Count,
    opened: Callable[[db.Database[Any]], Any],
    close: Callable[[Any, db.Database[Any]], Awaitable[None]],
    asks_again: bool,
    has_hook: bool,
) -> None:
    """The hook is asked once for it, and the object stays the one that code may hold."""
    moved = Moved(database_url, has_hook=has_hook)
    async with opened(moved.database) as session:
        await session.execute(INSERT, {"words": "lost"})
        await close(session, moved.database)
        await moved.database.change_host("new")
        if asks_again:
            assert await db.session(moved.database) is session
        await session.execute(INSERT, {"words": "a"})
        await session.execute(INSERT, {"words": "b"})
        await session.commit()
    assert moved.engines == ["old", "new"]
    assert moved.asked == (["old", "new"] if has_hook else [])
    assert session.info.get("host") == ("new" if has_hook else None)
    assert await rows() == 2
    await moved.database.dispose()


async def test_early_close_gives_the_engine_of_an_old_host_up(
    table: None, database_url: str, postgres: Observer
) -> None:
    """Its connections are closed at once, and not at the end of a long scope."""
    moved = Moved(database_url)
    async with db.scope():
        await (await db.session(moved.database)).execute(text("SELECT 1"))
        await moved.database.change_host("new")
        assert await postgres.backends() == 1
        await db.close()
        assert await postgres.backends() == 0
    assert moved.engines == ["old"]
    await moved.database.dispose()


async def test_objects_added_after_an_early_close_are_written_to_the_host_of_now(
    table: None, database_url: str, rows: Count
) -> None:
    """What was added to the session between its close and its next statement is kept."""
    moved = Moved(database_url)
    async with db.scope():
        session = await db.session(moved.database)
        await session.execute(text("SELECT 1"))
        await session.close()
        await moved.database.change_host("new")
        session.add(Note(words="a"))
    assert moved.engines == ["old", "new"]
    assert await rows() == 1
    await moved.database.dispose()


async def test_hook_that_fails_after_an_early_close_is_asked_again(database: db.Database, rows: Count) -> None:
    """Its error reaches the code that uses the session, and the next use asks once more."""
    answers: list[Exception | None] = [None, ConnectionError("no primary"), ConnectionError("no primary"), None]

    async def hook(_database: db.Database[Any], _arguments: dict[str, Any]) -> None:
        if (answer := answers.pop(0)) is not None:
            raise answer

    hooked = db.Database(database.url, before_session=hook)
    async with db.scope():
        session = await db.session(hooked)
        await db.close()
        with pytest.raises(ConnectionError):
            await db.session(hooked)
        with pytest.raises(ConnectionError):
            await session.execute(INSERT, {"words": "a"})
        await session.execute(INSERT, {"words": "a"})
    assert answers == []
    assert await rows() == 1
    await hooked.dispose()


@pytest.mark.parametrize("has_hook", [True, False])
async def test_session_in_a_thread_goes_on_at_the_host_of_now(
    table: None, database_url: str, rows: Count, has_hook: bool
) -> None:
    """A synchronous session as well, whether it is closed by its thread or by the scope; the old engine is given up."""
    moved = Moved(database_url, has_hook=has_hook, is_sync=True)

    def work(session: db.Session) -> None:
        session.execute(INSERT, {"words": "lost"})
        session.close()
        asyncio.run_coroutine_threadsafe(moved.database.change_host("new"), loop).result()
        session.execute(INSERT, {"words": "a"})

    loop = asyncio.get_running_loop()
    async with db.scope():
        session = await db.session(moved.database)
        await asyncio.to_thread(work, session)
        await db.commit()
        await db.close()
        await moved.database.change_host("newer")
        await asyncio.to_thread(session.execute, INSERT, {"words": "b"})
    assert moved.engines == ["old", "new", "newer"]
    assert moved.asked == (["old", "new", "newer"] if has_hook else [])
    assert await rows() == 2
    await moved.database.dispose()


async def test_session_used_on_the_loops_thread_says_that_the_hook_cannot_be_asked(
    table: None, database_url: str
) -> None:
    """A synchronous statement cannot wait for the hook there. Without a hook it goes on."""
    for moved in (Moved(database_url, is_sync=True), Moved(database_url, is_sync=True, has_hook=False)):
        async with db.scope():
            session = await db.session(moved.database)
            session.execute(text("SELECT 1"))
            session.close()
            if moved.database.has_hook:
                with pytest.raises(db.WrongThreadError, match=r"await db\.session"):
                    session.execute(text("SELECT 1"))
                await db.session(moved.database)
            session.execute(text("SELECT 1"))
        await moved.database.dispose()


async def test_tests_session_stays_in_its_transaction_after_a_close(database: db.Database, rows: Count) -> None:
    """A session of `rolled_back` joins one transaction, which it must not leave for an engine's own."""
    async with rolled_back() as session:
        await session.execute(INSERT, {"words": "a"})
        await session.commit()
        await session.close()
        await session.execute(INSERT, {"words": "b"})
        await session.commit()
        assert await session.scalar(text("SELECT count(*) FROM note")) == 2
    assert await rows() == 0
