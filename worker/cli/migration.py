"""``tandem migrate``: create or update the ledger's table."""

import asyncio
from typing import Annotated

import typer

from worker.cli.database import opened, project_database
from worker.config import Config
from worker.errors import ConfigError
from worker.ledger.migrate import Upgrade, upgrade, upgrade_sql
from worker.ledger.migrate import release as release_table

_STATEMENT_TIMEOUT = 24 * 3600.0  # seconds, for a large table, or while another process migrates it


def migrate(
    *,
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL for a new table, without a connection.")] = False,
    adopt: Annotated[bool, typer.Option("--adopt", help="Take over a table that other migrations have made.")] = False,
    release: Annotated[bool, typer.Option("--release", help="Leave the table to other migrations.")] = False,
) -> int:
    """Create the ledger's table in the default database, or update it.

    Run this command at each deploy, before the workers start. It does nothing if the table is up to date.
    """
    if sql + adopt + release > 1:
        raise ConfigError("give only one of --sql, --adopt and --release")
    config = Config.load()
    if sql:
        typer.echo(sql_of(config), nl=False)
    else:
        typer.echo(released(config) if release else migrated(config, adopt=adopt))
    return 0


def migrated(config: Config, *, adopt: bool = False) -> str:
    """Migrate the ledger's table; a line that says what was done.

    Args:
        adopt: whether to take over a table that other migrations have made.

    Raises:
        ConfigError: there is no default database.
        StartupError: the database does not answer, or refuses.
        LedgerError: the database can hold no ledger, or the table belongs to another version or to other software.
    """
    return f"{config.ledger}: {_describe(asyncio.run(_migrate(config, adopt=adopt)))}"


def released(config: Config) -> str:
    """Leave the ledger's table to other migrations; a line that says what was done. Raises as `migrated`."""
    if asyncio.run(_release(config)):
        return f"{config.ledger}: released: other migrations manage the table from now on"
    return f"{config.ledger}: 'migrate' does not manage the table: nothing to do"


def sql_of(config: Config) -> str:
    """The SQL that creates the table in a database of this kind. It does not connect.

    Raises:
        ConfigError: there is no default database.
        LedgerError: a database of this kind can hold no ledger.
    """
    return asyncio.run(_sql(config))


async def _migrate(config: Config, *, adopt: bool) -> Upgrade:
    async with opened(config, statement_timeout=_STATEMENT_TIMEOUT) as database:
        return await upgrade(database, config.ledger, adopt=adopt)


async def _release(config: Config) -> bool:
    async with opened(config, statement_timeout=_STATEMENT_TIMEOUT) as database:
        return await release_table(database, config.ledger)


async def _sql(config: Config) -> str:
    return upgrade_sql(project_database(config).kind, config.ledger)


def _describe(done: Upgrade) -> str:
    match done:
        case Upgrade(after=None):
            return "the table is complete, and other migrations manage it: nothing to do"
        case Upgrade(before, after, adopted=True):
            return f"taken over at version {before}" + ("" if before == after else f", and updated to {after}")
        case Upgrade(before=None, after=after):
            return f"created, version {after}"
        case Upgrade(before, after) if before == after:
            return f"version {after}: nothing to do"
        case Upgrade(before, after):
            return f"updated from version {before} to {after}"
