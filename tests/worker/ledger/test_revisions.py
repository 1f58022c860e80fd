"""Several versions of the ledger's tables: upgrades, downgrades, and tables that other software has changed."""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Connection, Text, inspect

import db
from tests.worker.ledger.test_migrate import execute, run_sync, tables
from worker.errors import LedgerError
from worker.ledger import revisions
from worker.ledger.alembic import downgrade as downgrade_in_revision
from worker.ledger.alembic import upgrade as upgrade_in_revision
from worker.ledger.migrate import Upgrade, downgrade_on, release, upgrade, upgrade_on

LATEST = revisions.versions()[-1]
COLOURS = f"""
revision, down_revision = "9001", "{LATEST}"

def upgrade(op, table, schema):
    from sqlalchemy import Column, Text
    op.add_column(table, Column("colour", Text), schema=schema)
    op.create_index(f"{{table}}_colour", table, ["colour"], schema=schema)
"""
NOTES = """
revision, down_revision = "9002", "9001"

def upgrade(op, table, schema):
    from sqlalchemy import Column, Text
    op.create_table(f"{table}_notes", Column("note", Text, primary_key=True), schema=schema)
    op.create_index(f"{table}_notes_note", f"{table}_notes", ["note"], schema=schema)
"""


@pytest.fixture
def later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Tandem with two more versions: 9001 adds a column and its index, and 9002 a table."""
    folder = tmp_path / "migrations"
    shutil.copytree(Path(revisions.__file__).parent / "migrations", folder)
    (folder / "versions/v9001_colours.py").write_text(COLOURS)
    (folder / "versions/v9002_notes.py").write_text(NOTES)
    monkeypatch.setattr(revisions, "MIGRATIONS", ScriptDirectory(str(folder)))
    revisions.parts_of.cache_clear()
    yield
    revisions.parts_of.cache_clear()


def operations(connection: Connection) -> Operations:
    """``alembic.op`` of a project."""
    return Operations(MigrationContext.configure(connection))


async def columns(database: db.Database[Any], name: str = "tandem_jobs") -> set[str]:
    found = await run_sync(database, lambda connection: inspect(connection).get_columns(name))
    return {column["name"] for column in found}


async def indexes(database: db.Database[Any], name: str = "tandem_jobs") -> set[str]:
    found = await run_sync(database, lambda connection: inspect(connection).get_indexes(name))
    return {index["name"] for index in found}


async def has(database: db.Database[Any]) -> tuple[bool, bool, bool]:
    """Whether the column and the index of 9001 and the table of 9002 are there."""
    return (
        "colour" in await columns(database),
        "tandem_jobs_colour" in await indexes(database),
        "tandem_jobs_notes" in await tables(database),
    )


async def test_an_upgrade_runs_each_version_that_is_missing(bare_database: db.Database[Any], later: None) -> None:
    assert await run_sync(bare_database, partial(upgrade_on, version=LATEST)) == Upgrade(None, LATEST)
    assert await has(bare_database) == (False, False, False)
    assert await run_sync(bare_database, partial(upgrade_on, version="9001")) == Upgrade(LATEST, "9001")
    assert await has(bare_database) == (True, True, False)
    assert await upgrade(bare_database) == Upgrade("9001", "9002")
    assert await has(bare_database) == (True, True, True)
    assert await run_sync(bare_database, partial(upgrade_on, version="9001")) == Upgrade("9002", "9002")


async def test_a_downgrade_drops_what_later_versions_have_added(bare_database: db.Database[Any], later: None) -> None:
    await upgrade(bare_database)
    await run_sync(bare_database, partial(downgrade_on, version="9001"))
    assert await has(bare_database) == (True, True, False)
    await run_sync(bare_database, partial(downgrade_on, version=LATEST))
    assert await has(bare_database) == (False, False, False)
    assert await upgrade(bare_database) == Upgrade(LATEST, "9002")
    await execute(bare_database, "CREATE TABLE tandem_jobs_of_mine (a int)")
    await run_sync(bare_database, downgrade_on)
    assert await tables(bare_database) == {"tandem_jobs_of_mine"}
    await run_sync(bare_database, downgrade_on)


@pytest.mark.parametrize("version", [LATEST, "9001", "9002"])
async def test_a_table_that_other_migrations_made_is_adopted_at_the_version_that_it_has(
    bare_database: db.Database[Any], later: None, version: str
) -> None:
    """Its version is what its columns, indexes and tables say."""
    await run_sync(bare_database, partial(upgrade_on, version=version))
    assert await release(bare_database)
    assert not await release(bare_database)
    assert await upgrade(bare_database) == Upgrade(None, None)
    assert await upgrade(bare_database, adopt=True) == Upgrade(version, "9002", adopted=True)
    assert await has(bare_database) == (True, True, True)
    assert await upgrade(bare_database, adopt=True) == Upgrade("9002", "9002")


async def test_a_version_that_other_migrations_have_added_already_is_left_out(
    bare_database: db.Database[Any], later: None
) -> None:
    """A project's Alembic has added the column of 9001 and its index by autogenerate."""
    await run_sync(bare_database, partial(upgrade_on, version=LATEST))

    def add(connection: Connection) -> None:
        operations(connection).add_column("tandem_jobs", Column("colour", Text))
        operations(connection).create_index("tandem_jobs_colour", "tandem_jobs", ["colour"])

    await run_sync(bare_database, add)
    assert await upgrade(bare_database) == Upgrade(LATEST, "9002")
    assert await has(bare_database) == (True, True, True)


async def test_a_table_of_other_software_that_is_no_ledger_is_not_adopted(bare_database: db.Database[Any]) -> None:
    await execute(bare_database, "CREATE TABLE tandem_jobs (id text)")
    with pytest.raises(LedgerError, match="tandem_jobs has not all columns and indexes of a ledger's table: rename it"):
        await upgrade(bare_database, adopt=True)
    assert await tables(bare_database) == {"tandem_jobs"}


@pytest.mark.parametrize("act", [upgrade_on, downgrade_on])
async def test_an_unknown_version_is_refused(bare_database: db.Database[Any], act: Callable[..., Any]) -> None:
    """One that is asked for, and one that the table has."""
    await upgrade(bare_database)
    with pytest.raises(LedgerError, match="this version of Tandem knows no version 9999 of the ledger"):
        await run_sync(bare_database, partial(act, version="9999"))
    await execute(bare_database, "UPDATE tandem_jobs_version SET version_num = '9999'")
    with pytest.raises(LedgerError, match=r"tandem_jobs is of version 9999, .* newer"):
        await run_sync(bare_database, act)


async def test_a_revision_of_a_project_upgrades_and_downgrades_in_its_own_transaction(
    bare_database: db.Database[Any], later: None
) -> None:
    """And it adopts a table that an earlier revision has made from the metadata."""

    def roll_back(connection: Connection) -> None:
        with connection.begin_nested() as nested:
            upgrade_in_revision(operations(connection))
            nested.rollback()

    await run_sync(bare_database, roll_back)
    assert await tables(bare_database) == set()
    await run_sync(bare_database, lambda it: upgrade_in_revision(operations(it), "9001"))
    assert await has(bare_database) == (True, True, False)
    await release(bare_database)
    await run_sync(bare_database, lambda it: upgrade_in_revision(operations(it), "9002"))
    assert await has(bare_database) == (True, True, True)
    assert await upgrade(bare_database) == Upgrade("9002", "9002")
    await run_sync(bare_database, lambda it: downgrade_in_revision(operations(it), "9001"))
    assert await has(bare_database) == (True, True, False)
    await run_sync(bare_database, lambda it: downgrade_in_revision(operations(it)))
    assert await tables(bare_database) == set()


async def test_all_of_it_works_in_a_schema(bare_postgres: str, later: None) -> None:
    database: db.Database[Any] = db.Database(bare_postgres)
    await run_sync(database, partial(upgrade_on, name="work.jobs", version="9001"))
    await release(database, "work.jobs")
    assert await upgrade(database, "work.jobs", adopt=True) == Upgrade("9001", "9002", adopted=True)
    await run_sync(database, partial(downgrade_on, name="work.jobs", version=LATEST))
    assert "jobs_notes" not in await tables(database, "work")
    await run_sync(database, partial(downgrade_on, name="work.jobs"))
    assert await tables(database, "work") == set()
    await database.dispose()


async def test_a_revision_that_only_prints_sql_is_refused() -> None:
    """The version that the database has is unknown."""
    context = MigrationContext.configure(dialect_name="postgresql", opts={"as_sql": True})
    for act in (upgrade_in_revision, downgrade_in_revision):
        with pytest.raises(LedgerError, match="run 'tandem migrate --sql'"):
            act(Operations(context))


def test_what_a_version_has_is_found_out_without_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Alembic would log a database that is not the project's."""
    caplog.set_level("INFO")
    revisions.parts_of.cache_clear()
    assert revisions.parts_of(LATEST)
    assert caplog.text == ""
