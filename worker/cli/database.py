"""The project's database, for commands that run without a worker."""

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
        ConfigError: ``DATABASE_URL`` is not set and the project makes no database.
    """
    if config.database_url is None and (own := _own_database(config)) is not None:
        return own
    return db.Database(config.require_database_url(), default=True, **options)


def _own_database(config: Config) -> db.Database[Any] | None:
    try:
        load(config.registry)
    except RegistryError as error:
        raise ConfigError(
            f"DATABASE_URL is not set, and {config.registry}, which may make a database, does not load: "
            f"{error.problems[0]}"
        ) from None
    return given_default()


@asynccontextmanager
async def opened(config: Config, **options: Any) -> AsyncIterator[db.Database[Any]]:
    """Open `project_database` for the length of a block, when the server answers.

    Raises:
        StartupError: the server does not answer, or refuses a statement of the block.
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
