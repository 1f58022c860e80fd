"""The versions of the ledger's tables: what each of them has, and which one a database has.

What a version has is found out by making it, in a SQLite database in memory. So the migrations say it alone.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext, MigrationStep, RevisionStep
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Inspector, create_engine, inspect

MIGRATIONS = ScriptDirectory(str(Path(__file__).parent / "migrations"))
_SAMPLE = "jobs"


class Part(NamedTuple):
    """A table, a column or an index of the ledger. Names of tables and indexes are without the ledger's own name."""

    table: str
    kind: str
    """``table``, ``column`` or ``index``."""
    name: str = ""


def versions() -> list[str]:
    """All versions, the oldest first."""
    return [script.revision for script in reversed([*MIGRATIONS.iterate_revisions("head", "base")])]


@cache
def parts_of(version: str) -> frozenset[Part]:
    """What the tables of a version have. Nothing for ``base``."""
    if version == "base":
        return frozenset()
    engine = create_engine("sqlite://")
    with engine.begin() as connection, _no_log():
        op = Operations(MigrationContext.configure(connection))
        for script in reversed([*MIGRATIONS.iterate_revisions(version, "base")]):
            script.module.upgrade(op=op, table=_SAMPLE, schema=None)
        inspector = inspect(connection)
        tables = [name for name in inspector.get_table_names() if name.startswith(_SAMPLE)]
        found = frozenset(part for name in tables for part in _parts(inspector, name, _SAMPLE, None))
    engine.dispose()
    return found


def version_of(connection: Connection, bare: str, schema: str | None) -> str | None:
    """The latest version whose parts are all in the database. None if not even the first one's are."""
    inspector = inspect(connection)
    newest = versions()
    suffixes = {part.table for part in parts_of(newest[-1])}
    present = [bare + suffix for suffix in suffixes if inspector.has_table(bare + suffix, schema)]
    found = {part for name in present for part in _parts(inspector, name, bare, schema)}
    return next((version for version in reversed(newest) if parts_of(version) <= found), None)


def steps_to(version: str) -> Any:
    """For `MigrationContext`: the migrations up to `version` that have not been run yet, the oldest first."""

    def steps(heads: tuple[str, ...], _context: MigrationContext) -> Iterator[RevisionStep]:
        missing = list(MIGRATIONS.iterate_revisions(version, heads or "base"))
        for script in reversed(missing):
            yield MigrationStep.upgrade_from_script(MIGRATIONS.revision_map, script)

    return steps


def stamp(context: MigrationContext, version: str) -> None:
    """Record that the tables are of this version."""
    context.stamp(MIGRATIONS, version)


@contextmanager
def _no_log() -> Iterator[None]:
    """Keep Alembic from logging another database than the project's."""
    log = logging.getLogger(MigrationContext.__module__)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _parts(inspector: Inspector, name: str, bare: str, schema: str | None) -> Iterator[Part]:
    table = name.removeprefix(bare)
    yield Part(table, "table")
    yield from (Part(table, "column", column["name"]) for column in inspector.get_columns(name, schema))
    for index in inspector.get_indexes(name, schema):
        yield Part(table, "index", (index["name"] or "").removeprefix(bare))
