"""`Database(before_first_session=...)`: a hook that is called once, before the first session."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import text

import db
from tests.db.conftest import Count, insert
from tests.db.models import Base
from tests.servers import Observer


async def create_tables(database: db.Database[Any]) -> None:
    async with db.independent(database) as session:
        await (await session.connection()).run_sync(Base.metadata.create_all)
        await session.commit()


async def test_hook_makes_tables_before_the_first_session(database_url: str, rows: Count) -> None:
    """It is called once, on first use, and its own sessions do not wait for it. All other sessions do."""
    calls: list[str] = []

    async def hook(database: db.Database[Any]) -> None:
        calls.append("begun")
        await asyncio.gather(create_tables(database))
        calls.append("ended")

    database = db.Database(database_url, before_first_session=hook, default=True)
    assert calls == []
    await asyncio.gather(*(db.isolated(insert, str(number)) for number in range(5)))
    await database.dispose()
    await db.isolated(insert, "later")
    assert calls == ["begun", "ended"]
    assert await rows() == 6
    await database.dispose()


async def test_hook_that_fails_is_called_again(database_url: str, rows: Count) -> None:
    """Its error reaches the code that asks for the session, and no session is opened before it has succeeded."""
    failures = [ConnectionError("not yet"), ConnectionError("not yet")]

    async def hook(database: db.Database[Any]) -> None:
        if failures:
            raise failures.pop()
        await create_tables(database)

    database = db.Database(database_url, before_first_session=hook, default=True)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            await db.isolated(insert, "a")
    await db.isolated(insert, "a")
    assert await rows() == 1
    await database.dispose()


async def test_hook_comes_before_the_first_session_of_the_sync_twin(database_url: str, postgres: Observer) -> None:
    """Whichever of the two is used first; and before `before_session`."""
    calls: list[str] = []

    async def first(database: db.Database[Any]) -> None:
        calls.append("first")
        async with db.independent(database.sync) as session:
            await asyncio.to_thread(session.execute, text("SELECT 1"))

    async def each(_database: db.Database[Any], _arguments: dict[str, Any]) -> None:
        calls.append("each")

    database = db.Database(database_url, before_first_session=first, before_session=each)
    async with db.scope():
        session = await db.session(database.sync)
        await asyncio.to_thread(session.execute, text("SELECT 1"))
        await db.session(database)
    assert calls == ["first", "each", "each", "each"]
    await database.dispose()


def test_hook_that_failed_on_one_loop_is_called_on_the_next(database_url: str) -> None:
    """Also with several callers on each loop."""
    calls: list[str] = []

    async def hook(_database: db.Database[Any]) -> None:
        calls.append("call")
        await asyncio.sleep(0)
        if len(calls) <= 3:
            raise ConnectionError

    database = db.Database(database_url, before_first_session=hook, default=True)

    async def use() -> list[Any]:
        async def one() -> int:
            return int(await (await db.session()).scalar(text("SELECT 7")) or 0)

        found = await asyncio.gather(*(db.isolated(one) for _ in range(3)), return_exceptions=True)
        await database.dispose()
        return [each if isinstance(each, int) else type(each) for each in found]

    assert asyncio.run(use()) == [ConnectionError] * 3
    assert asyncio.run(use()) == [7] * 3
    assert len(calls) == 4
