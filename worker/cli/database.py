"""The database of the project, for commands that need it and no worker."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy.exc import DBAPIError

import db
from db.database import given_default
from worker.config import Config
from worker.errors import ConfigError, RegistryError
from worker.process.errors import StartupError
from worker.process.server_wait import await_server, reason_of
from worker.registry import load


def project_database(config: Config, **options: Any) -> db.Database[Any]:
    """The default database: that of ``DATABASE_URL`` with these options, else the one that the project's code makes.

    Raises:
        ConfigError: there is neither.
    """
    if config.database_url is None and (own := _own_database(config)) is not None:
        return own
    return db.Database(config.require_database_url(), default=True, **options)


def _own_database(config: Config) -> db.Database[Any] | None:
    try:
        load(config.registry)
    except RegistryError as error:
        raise ConfigError(
            f"DATABASE_URL is not set, and {config.registry}, whose tasks may make a database, cannot be loaded: "
            f"{error.problems[0]}"
        ) from None
    return given_default()


@asynccontextmanager
async def opened(config: Config, **options: Any) -> AsyncIterator[db.Database[Any]]:
    """`project_database`, once it answers, for the length of a block.

    Raises:
        StartupError: it does not answer, or refuses what the block asks of it.
    """
    database = project_database(config, **options)
    try:
        await await_server("DATABASE_URL", database.check, config.connect_wait)
        yield database
    except db.DatabaseURLError as error:
        raise StartupError(f"DATABASE_URL: {error}") from None
    except (DBAPIError, db.DatabaseUnreachableError) as error:
        raise StartupError(f"DATABASE_URL: the server refuses: {reason_of(error)}") from None
    finally:
        await database.dispose()
        db.set_default_database(None)
