"""Migrations: they make the table that the code has, once, and change no table of a project's own."""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine, inspect, make_url, text
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.aiosqlite import SQLiteDialect_aiosqlite

import db
from tests.servers import as_dsn
from worker.errors import LedgerError
from worker.ledger import Ledger, table
from worker.ledger.migrate import Upgrade, upgrade, upgrade_on, upgrade_sql
from worker.ledger.schema_check import check
from worker.new_job import NewJob

ROW = NewJob("j1", b"{}", "send", "arq:queue", 1_000)
NEWEST = "0004"
TABLES = {"tandem_jobs", "tandem_jobs_audit", "tandem_jobs_pauses"}
RUN_MIGRATE = "run 'python -m worker migrate'"

_COLUMNS = """
    SELECT column_name, data_type, character_maximum_length, is_nullable, column_default, collation_name
    FROM information_schema.columns WHERE table_name = :table ORDER BY ordinal_position
"""
_INDEXES = "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = :table ORDER BY indexname"
_OPTIONS = "SELECT reloptions FROM pg_class WHERE relname = :table"


def likeness(connection: Connection, name: str = "tandem_jobs") -> list[str]:
    """All that a database knows of a table, as the server puts it, under the name ``tandem_jobs``."""
    if connection.dialect.name == "sqlite":
        # Not the table's own SQL, which an added column leaves in another order.
        columns = "SELECT * FROM pragma_table_xinfo(:table)"
        indexes = "SELECT sql FROM sqlite_master WHERE tbl_name = :table AND type = 'index' ORDER BY sql"
        rows = [row for query in (columns, indexes) for row in connection.execute(text(query), {"table": name})]
    else:
        queries = (_COLUMNS, _INDEXES, _OPTIONS)
        rows = [row for query in queries for row in connection.execute(text(query), {"table": name})]
    return [" ".join(str(tuple(row)).replace(name, "tandem_jobs").split()) for row in rows]


async def run_sync(database: db.Database[Any], fn: Any, *args: Any) -> Any:
    """`fn`, with a connection in a transaction that is then committed."""
    async with db.scope() as work:
        session = await work.session(database)
        if isinstance(session, db.AsyncSession):
            return await (await session.connection()).run_sync(fn, *args)
        return await asyncio.to_thread(lambda: fn(session.connection(), *args))


async def execute(database: db.Database[Any], statement: str) -> None:
    await run_sync(database, lambda connection: connection.execute(text(statement)))


async def tables(database: db.Database[Any], schema: str | None = None) -> set[str]:
    return set(await run_sync(database, lambda connection: inspect(connection).get_table_names(schema)))


class TestUpgrade:
    async def test_the_first_migration_makes_the_table_and_the_next_one_nothing(
        self, bare_database: db.Database[Any]
    ) -> None:
        """The first migration makes the table and its version, whatever the driver; the next finds nothing to do."""
        with pytest.raises(LedgerError, match="missing"):
            await check(bare_database, "tandem_jobs")
        done = await upgrade(bare_database)
        assert done == Upgrade(None, NEWEST)
        await check(bare_database, "tandem_jobs")
        assert await tables(bare_database) == {*TABLES, "tandem_jobs_version"}
        assert await upgrade(bare_database) == Upgrade(NEWEST, NEWEST)

    async def test_the_migrated_table_is_the_one_that_the_code_defines(self, bare_database: db.Database[Any]) -> None:
        """Columns, indexes with their conditions, collation and storage are those of `table()`."""
        await upgrade(bare_database)
        await run_sync(bare_database, table("other").metadata.create_all)
        for suffix, least in {"": 5, "_pauses": 1, "_audit": 2}.items():
            migrated = await run_sync(bare_database, likeness, f"tandem_jobs{suffix}")
            assert len(migrated) >= least
            assert migrated == await run_sync(bare_database, likeness, f"other{suffix}")

    async def test_a_projects_own_alembic_sees_no_difference_to_the_migrated_table(
        self, bare_database: db.Database[Any]
    ) -> None:
        """The project includes our metadata in its own."""
        await upgrade(bare_database)

        def compare(connection: Connection) -> Any:
            def is_ours(name: str | None, kind: str, _parents: Any) -> bool:
                return kind != "table" or name in TABLES

            options = {"compare_type": True, "compare_server_default": True, "include_name": is_ours}
            return compare_metadata(MigrationContext.configure(connection, opts=options), table().metadata)

        assert await run_sync(bare_database, compare) == []

    async def test_a_table_of_the_first_version_gets_the_columns_of_the_second(
        self, bare_database: db.Database[Any]
    ) -> None:
        """A worker that starts before says what to type. Then the table is as a new one, and its rows are kept."""
        await upgrade(bare_database)
        await run_sync(bare_database, table("other").metadata.create_all)
        for statement in (
            "DROP TABLE tandem_jobs_audit",
            "DROP TABLE tandem_jobs_pauses",
            "DROP INDEX tandem_jobs_dropped",
            "DROP INDEX tandem_jobs_parent",
            "ALTER TABLE tandem_jobs DROP COLUMN parent",
            "ALTER TABLE tandem_jobs DROP COLUMN traceparent",
            "UPDATE tandem_jobs_version SET version_num = '0001'",
            "INSERT INTO tandem_jobs (id, enqueued_at, task, queue, state) VALUES ('j1', 1, 'send', 'mail', 'pending')",
        ):
            await execute(bare_database, statement)
        with pytest.raises(LedgerError, match=f"tandem_jobs is old: {RUN_MIGRATE}"):
            await check(bare_database, "tandem_jobs")
        assert await upgrade(bare_database) == Upgrade("0001", NEWEST)
        await check(bare_database, "tandem_jobs")
        assert await run_sync(bare_database, likeness) == await run_sync(bare_database, likeness, "other")
        kept = "SELECT count(*) FROM tandem_jobs WHERE id = 'j1' AND parent IS NULL AND traceparent IS NULL"
        assert await run_sync(bare_database, lambda connection: connection.scalar(text(kept))) == 1

    async def test_of_several_concurrent_migrations_one_makes_the_table_and_the_others_wait(
        self, bare_database: db.Database[Any]
    ) -> None:
        """Of several that migrate at the same time one makes the table, and the others wait and find it."""
        assert bare_database.url is not None
        others: list[db.Database[Any]] = [db.Database(bare_database.url) for _ in range(5)]
        if not bare_database.is_sqlite:
            name = bare_database.url.database
            await execute(bare_database, f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
        done = await asyncio.gather(*map(upgrade, others))
        assert sorted(done, key=str) == [*[Upgrade(NEWEST, NEWEST)] * 4, Upgrade(None, NEWEST)]
        for other in others:
            await other.dispose()

    async def test_a_table_name_with_a_schema_makes_that_schema_and_keeps_the_version_in_it(
        self, bare_postgres: str
    ) -> None:
        """A name with a schema makes the schema, and keeps the version in it too."""
        database: db.Database[Any] = db.Database(bare_postgres)
        await upgrade(database, "work.jobs")
        await check(database, "work.jobs")
        assert await tables(database, "work") == {"jobs", "jobs_audit", "jobs_pauses", "jobs_version"}
        assert await tables(database) == set()
        assert await upgrade(database, "work.jobs") == Upgrade(NEWEST, NEWEST)
        await database.dispose()

    def test_migrating_in_an_existing_schema_needs_no_right_to_create_schemas(self, bare_postgres: str) -> None:
        """The right to create tables in the schema is enough."""
        engine = create_engine(bare_postgres.replace("asyncpg", "psycopg"))
        with engine.connect() as connection:
            connection.execute(text("CREATE ROLE tandem_test_modest"))
            connection.execute(text("CREATE SCHEMA work"))
            connection.execute(text("GRANT USAGE, CREATE ON SCHEMA work TO tandem_test_modest"))
            connection.execute(text("SET LOCAL ROLE tandem_test_modest"))
            assert upgrade_on(connection, "work.jobs") == Upgrade(None, NEWEST)
            connection.rollback()
        engine.dispose()

    async def test_a_migration_that_fails_leaves_nothing_behind(self, bare_database: db.Database[Any]) -> None:
        """It is one transaction: the version and the table are there together or not at all."""
        await execute(bare_database, "CREATE TABLE other (a int)")
        await execute(bare_database, "CREATE INDEX tandem_jobs_prune ON other (a)")
        with pytest.raises(Exception, match="already exists"):
            await upgrade(bare_database)
        assert await tables(bare_database) == {"other"}

    async def test_a_table_of_a_newer_version_is_not_migrated(self, bare_database: db.Database[Any]) -> None:
        """An old worker does not guess what a newer version has made."""
        await upgrade(bare_database)
        await execute(bare_database, "UPDATE tandem_jobs_version SET version_num = '9999'")
        with pytest.raises(LedgerError, match=r"tandem_jobs is of version 9999, .* newer"):
            await upgrade(bare_database)

    async def test_a_table_that_a_projects_own_alembic_made_is_not_migrated(
        self, bare_database: db.Database[Any]
    ) -> None:
        """It is complete, or the project has to change it."""
        await run_sync(bare_database, table().metadata.create_all)
        assert await upgrade(bare_database) == Upgrade(None, None)
        assert await tables(bare_database) == TABLES
        await execute(bare_database, "DROP TABLE tandem_jobs_audit")
        with pytest.raises(LedgerError, match="add the tables tandem_jobs_audit"):
            await upgrade(bare_database)
        await run_sync(bare_database, table().metadata.create_all)
        await execute(bare_database, "ALTER TABLE tandem_jobs DROP COLUMN history")
        with pytest.raises(LedgerError, match="tandem_jobs is old, and was not made by 'migrate'"):
            await upgrade(bare_database)


class TestSql:
    async def test_the_printed_sql_makes_the_migrated_table_on_postgresql(self, bare_postgres: str) -> None:
        """It can be run by hand; `migrate` then has nothing to do."""
        with psycopg.connect(as_dsn(make_url(bare_postgres)), autocommit=True) as connection:
            connection.execute(upgrade_sql("postgresql", "work.jobs").encode())
        database: db.Database[Any] = db.Database(bare_postgres)
        assert await upgrade(database, "work.jobs") == Upgrade(NEWEST, NEWEST)
        await upgrade(database)
        by_hand = await run_sync(database, likeness, "jobs")
        assert [line.replace("work.", "public.") for line in by_hand] == await run_sync(database, likeness)
        await database.dispose()

    async def test_the_printed_sql_makes_the_migrated_table_on_sqlite(self, tmp_path: Path) -> None:
        """`migrate` then has nothing to do."""
        file = tmp_path / "by-hand.sqlite"
        with closing(sqlite3.connect(file)) as connection:
            connection.executescript(upgrade_sql("sqlite"))
        database: db.Database[Any] = db.Database(f"sqlite+aiosqlite:///{file}")
        assert await upgrade(database) == Upgrade(NEWEST, NEWEST)
        await check(database, "tandem_jobs")
        await database.dispose()


class TestSchemaCheck:
    async def test_enqueueing_without_the_table_is_an_error_that_names_the_command(
        self, bare_database: db.Database[Any]
    ) -> None:
        """It is not the driver's error."""
        ledger = Ledger()
        db.set_default_database(bare_database)
        try:
            for write in (lambda session: ledger.add(session, [ROW]), lambda session: ledger.reserve(session, ROW)):
                with pytest.raises(LedgerError) as caught:
                    async with db.scope():
                        await write(await db.session())
                assert str(caught.value).startswith(f"the ledger's table tandem_jobs is missing: {RUN_MIGRATE}")
        finally:
            db.set_default_database(None)

    async def test_a_table_without_a_column_is_reported_as_old(self, bare_database: db.Database[Any]) -> None:
        """Not as missing."""
        await upgrade(bare_database)
        await execute(bare_database, "ALTER TABLE tandem_jobs DROP COLUMN history")
        with pytest.raises(LedgerError) as caught:
            await check(bare_database, "tandem_jobs")
        assert str(caught.value) == f"the ledger's table tandem_jobs is old: {RUN_MIGRATE}"

    async def test_a_missing_control_table_is_reported_by_its_name(self, bare_database: db.Database[Any]) -> None:
        """A worker of this version would not find the pauses of its queues."""
        await upgrade(bare_database)
        await execute(bare_database, "DROP TABLE tandem_jobs_pauses")
        with pytest.raises(LedgerError) as caught:
            await check(bare_database, "tandem_jobs")
        assert str(caught.value) == f"the ledger's table tandem_jobs_pauses is missing: {RUN_MIGRATE}"

    async def test_a_table_name_with_a_schema_is_refused_on_sqlite(self, sqlite_url: str) -> None:
        """SQLite would look for another file."""
        database: db.Database[Any] = db.Database(sqlite_url)
        with pytest.raises(LedgerError, match=r"WORKER_LEDGER=work\.jobs: SQLite has no schemas"):
            await check(database, "work.jobs")
        await database.dispose()

    @pytest.fixture
    def other_kind(self, tmp_path: Path) -> Iterator[str]:
        """The URL of a database that SQLAlchemy calls ``other``."""

        class Other(SQLiteDialect_aiosqlite):
            name = "other"

        registry.impls["other.aiosqlite"] = lambda: Other
        yield f"other+aiosqlite:///{tmp_path}/other"
        del registry.impls["other.aiosqlite"]

    async def test_a_database_other_than_postgresql_and_sqlite_is_refused(self, other_kind: str) -> None:
        """The error names the database. The ledger's statements are not written for it."""
        database: db.Database[Any] = db.Database(other_kind)
        for asked in (check(database, "tandem_jobs"), upgrade(database)):
            with pytest.raises(LedgerError, match="needs PostgreSQL or SQLite, and the default database is other"):
                await asked
        await database.dispose()
