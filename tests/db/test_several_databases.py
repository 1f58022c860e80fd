"""Several databases in one scope: a primary and a replica, the order of their commits, and what a failure leaves."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

import db
from db.transient import Transient, transient
from tests.db.conftest import INSERT, Count, insert
from tests.servers import Databases, Observer, as_url


@pytest.fixture
async def second(databases: Databases, database: db.Database) -> AsyncIterator[db.Database]:
    """Another database with a table of the same shape."""
    with databases.new() as url:
        second = db.Database(as_url(url, "asyncpg"), name="second")
        async with db.independent(second) as session:
            await session.execute(text("CREATE TABLE note (id serial PRIMARY KEY, words text UNIQUE)"))
            await session.execute(
                text("CREATE TABLE reply (note_id int REFERENCES note DEFERRABLE INITIALLY DEFERRED)")
            )
            await session.commit()
        yield second
        await second.dispose()
        databases.assert_no_open_transaction(url)


async def count_in(database: db.Database) -> int:
    async with db.independent(database) as session:
        return int(await session.scalar(text("SELECT count(*) FROM note")) or 0)


async def test_scope_reads_a_replica_and_writes_the_primary(
    database: db.Database, database_url: str, rows: Count
) -> None:
    """One scope reads from a replica and writes to the primary; a write to the replica is told apart from a mistake."""
    replica = db.Database(
        database_url,
        name="replica",
        engine_options={"connect_args": {"server_settings": {"default_transaction_read_only": "on"}}},
    )
    async with db.scope():
        await insert("a")
        reading = await db.session(replica)
        assert reading is await db.session(replica)
        assert reading is not await db.session()
        assert await reading.scalar(text("SELECT count(*) FROM note")) == 0
    assert await rows() == 1
    with pytest.raises(DBAPIError, match="read-only transaction") as refused:
        async with db.scope():
            await insert("b")
            await (await db.session(replica)).execute(INSERT, {"words": "c"})
    assert transient(refused.value) is Transient.READ_ONLY
    assert await rows() == 1
    await replica.dispose()


async def test_default_database_commits_last(database: db.Database, second: db.Database) -> None:
    """Databases commit in the order of their first use, the default one last of all."""
    third = db.Database(second.url, name="third")
    order: list[str] = []
    async with db.scope() as here:
        await insert("a")
        for each in (second, third):
            session = await db.session(each)
            await session.execute(text("SELECT 1"))
        for each in (database, third, second):
            db.on_commit(lambda name=each.name: order.append(name), each)  # type: ignore[misc]
        assert [unit.database for unit in here.scoped_sessions] == [second, third, database]
    assert order == ["second", "third", database.name]
    await third.dispose()


async def test_failure_of_a_later_commit_names_what_was_committed(
    database: db.Database, second: db.Database, rows: Count
) -> None:
    """When the default database refuses its COMMIT the other has committed: the error names both, and the callbacks of
    what was committed have run."""
    told: list[str] = []
    with pytest.raises(db.PartialCommitError, match="second committed") as partial:
        async with db.scope():
            await (await db.session(second)).execute(INSERT, {"words": "a"})
            await (await db.session()).execute(text("INSERT INTO reply VALUES (404)"))
            await insert("a")
            db.on_commit(lambda: told.append("second"), second)
            db.on_commit(lambda: told.append("default"))
    assert partial.value.committed == ("second",)
    assert partial.value.failed == database.name
    assert isinstance(partial.value.__cause__, IntegrityError)
    assert transient(partial.value) is None
    assert told == ["second"]
    assert await count_in(second) == 1
    assert await rows() == 0


async def test_failure_of_the_first_commit_commits_nothing(
    database: db.Database, second: db.Database, rows: Count
) -> None:
    """When the first COMMIT fails nothing was committed, and its own error comes out."""
    with pytest.raises(IntegrityError):
        async with db.scope():
            await (await db.session(second)).execute(text("INSERT INTO reply VALUES (404)"))
            await insert("a")
    assert await rows() == 0


async def test_unused_session_does_not_count_as_committed(database: db.Database, second: db.Database) -> None:
    """A session that was asked for and not used has nothing to commit, so a later failure is no partial one."""
    with pytest.raises(IntegrityError):
        async with db.scope():
            await db.session(second)
            await (await db.session()).execute(text("INSERT INTO reply VALUES (404)"))


async def test_refusal_prevents_the_commit_of_every_database(
    database: db.Database, second: db.Database, rows: Count
) -> None:
    """A before-commit callback of the last database still prevents the commit of all; so does a failing flush."""

    async def refuse(_session: db.AsyncSession) -> None:
        raise ValueError("over budget")

    for end in (lambda: None, db.commit):
        with pytest.raises(ValueError, match="over budget"):
            async with db.scope():
                await (await db.session(second)).execute(INSERT, {"words": "a"})
                await insert("a")
                db.before_commit(refuse)
                if end is db.commit:
                    await db.commit()
    assert await count_in(second) == 0
    assert await rows() == 0


async def test_before_commit_may_register_one_for_another_database(
    database: db.Database, second: db.Database, rows: Count
) -> None:
    """A before-commit callback may make another for a database that was not used, or whose have run already."""

    async def write_second(session: db.AsyncSession) -> None:
        await session.execute(INSERT, {"words": "from a callback"})

    async def write(_session: db.AsyncSession) -> None:
        db.before_commit(write_second, second)

    async with db.scope():
        await insert("a")
        db.before_commit(write)
    assert await rows() == 1
    assert await count_in(second) == 1


async def test_early_end_acts_on_one_database_or_all(database: db.Database, second: db.Database, rows: Count) -> None:
    """`commit`, `rollback` and `close` act on the database that is named, else on all that the scope has used."""
    async with db.scope():
        other = await db.session(second)
        await insert("a")
        await other.execute(INSERT, {"words": "a"})
        await db.commit(second)
        assert (await rows(), await count_in(second)) == (0, 1)
        await db.commit()
        assert await rows() == 1
        await insert("b")
        await other.execute(INSERT, {"words": "b"})
        await db.rollback(second)
        await db.commit()
        assert (await rows(), await count_in(second)) == (2, 1)
        await insert("c")
        await other.execute(INSERT, {"words": "c"})
        await db.close(second)
        await db.rollback()
    assert (await rows(), await count_in(second)) == (2, 1)


async def test_early_commit_that_fails_half_way_names_what_was_committed(
    database: db.Database, second: db.Database, rows: Count
) -> None:
    """A failing early commit of all databases names those that were committed. The scope can go on."""
    told: list[str] = []
    async with db.scope():
        await (await db.session(second)).execute(INSERT, {"words": "a"})
        await (await db.session()).execute(text("INSERT INTO reply VALUES (404)"))
        db.on_commit(lambda: told.append("second"), second)
        with pytest.raises(db.PartialCommitError, match="second committed"):
            await db.commit()
        assert told == ["second"]
        await insert("b")
    assert await count_in(second) == 1
    assert await rows() == 1


async def test_error_rolls_back_every_database(database: db.Database, second: db.Database, rows: Count) -> None:
    """An exception rolls back every database."""
    with pytest.raises(ZeroDivisionError):
        async with db.scope():
            await (await db.session(second)).execute(INSERT, {"words": "a"})
            await insert("a")
            raise ZeroDivisionError
    assert await rows() == 0
    assert await count_in(second) == 0


class Stubborn(AsyncSession):
    """A user's own session class that fails to close."""

    async def close(self) -> None:
        raise LookupError("will not close")


async def test_session_that_fails_to_close_is_logged(
    database: db.Database, second: db.Database, rows: Count, caplog: pytest.LogCaptureFixture
) -> None:
    """A session whose `close` raises is logged. The commit stands, and the other session is closed."""
    stubborn = db.Database(
        second.url, sessions=lambda engine: async_sessionmaker(engine, class_=Stubborn, expire_on_commit=False)
    )
    async with db.scope():
        await (await db.session(stubborn)).execute(INSERT, {"words": "a"})
        await insert("a")
        default_session = await db.session()
    assert "will not close" in caplog.text
    assert (await rows(), await count_in(second)) == (1, 1)
    assert default_session.access.ended
    await stubborn.dispose()


async def test_lost_connection_does_not_keep_the_others_open(
    database: db.Database, second: db.Database, postgres: Observer, rows: Count, databases: Databases
) -> None:
    """A database whose connection is gone when the scope ends does not keep the others from being closed."""
    other_way = db.Database(second.url)
    with pytest.raises(ZeroDivisionError):
        async with db.scope():
            await (await db.session(second)).execute(INSERT, {"words": "a"})
            await insert("a")
            async with db.independent(other_way) as admin:
                others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                await admin.execute(text(f"SELECT pg_terminate_backend(pid) {others}"))
            raise ZeroDivisionError
    await other_way.dispose()
    assert await postgres.idle_in_transaction() == 0
    assert await rows() == 0
    assert await count_in(second) == 0
