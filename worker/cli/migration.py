"""What ``python -m worker migrate`` does. Alembic, which it needs, takes a while to import: no other command does."""

import asyncio

from worker.cli.database import opened, project_database
from worker.config import Config
from worker.ledger.migrate import Upgrade, upgrade, upgrade_sql

_LONG = 24 * 3600.0  # seconds: a large table may take its time, and others who migrate wait for it


def migrated(config: Config) -> str:
    """Migrate the ledger; a line that says what was done.

    Raises:
        ConfigError: there is no default database.
        StartupError: it does not answer, or refuses.
        LedgerError: it can hold no ledger, or its table is another version's or somebody else's.
    """
    return f"{config.ledger}: {_describe(asyncio.run(_migrate(config)))}"


def sql_of(config: Config) -> str:
    """What makes the table in a database of that kind, without connecting to it.

    Raises:
        ConfigError, LedgerError: as above.
    """
    return asyncio.run(_sql(config))


async def _migrate(config: Config) -> Upgrade:
    async with opened(config, statement_timeout=_LONG) as database:
        return await upgrade(database, config.ledger)


async def _sql(config: Config) -> str:
    return upgrade_sql(project_database(config).kind, config.ledger)


def _describe(done: Upgrade) -> str:
    match done:
        case Upgrade(after=None):
            return "complete, and looked after by other migrations: nothing to do"
        case Upgrade(before=None, after=after):
            return f"made, at version {after}"
        case Upgrade(before, after) if before == after:
            return f"at version {after}: nothing to do"
        case Upgrade(before, after):
            return f"from version {before} to {after}"
