"""Embedded servers for a project that sets no URLs, for as long as the process that starts them runs.

That process writes the URLs to a file in ``.tandem/``, where ``python -m worker env`` finds them for other processes.
"""

import asyncio
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
from sqlalchemy.exc import SQLAlchemyError

import db
from worker.broker.broker import Broker
from worker.broker.errors import RedisError
from worker.config import Config
from worker.embedded import EmbeddedServerError, Urls, servers
from worker.embedded.project_alembic import await_ledger, makes_ledger

USE_LOCAL_SERVERS = "eval $(python -m worker env)"
"""What to type so that a shell uses the servers of this project's run."""

_FOLDER = Path(".tandem")
_TIMEOUT = 5.0  # seconds for the servers to answer
_SERVER_NAMES = {"DATABASE_URL": "PostgreSQL", "REDIS_URL": "Redis"}


@contextmanager
def local_servers(config: Config) -> Iterator[Urls]:
    """The URLs of both servers. A server without a URL is started for the block, and `find` finds it meanwhile.

    A database that is started gets the ledger's table, unless the project's own Alembic makes it: see
    `await_alembic`.

    Raises:
        EmbeddedServerError: a server cannot be started, or its URL cannot be written to a file.
    """
    with servers(config.database_url, config.redis_url) as urls:
        if config.database_url is None and not makes_ledger(config.ledger):
            asyncio.run(_make_ledger(urls.database, config.ledger))
        with _published(_started(config, urls)):
            yield urls


def message(config: Config) -> str | None:
    """The message to the user about the servers that are started; None if `config` has both URLs."""
    missing = _missing(config)
    if not missing:
        return None
    one = len(missing) == 1
    started = " and ".join(f"a {_SERVER_NAMES[variable]}" for variable in missing)
    return (
        f"{' and '.join(missing)} {'is' if one else 'are'} not set: this run has {started} of its own. "
        f"{'It is' if one else 'They are'} empty, and deleted when the run ends.\n"
        f"To use {'it' if one else 'them'} in another shell, type: eval $(python -m worker env)"
    )


def alembic_message(config: Config) -> str | None:
    """The message to the user if this run begins only when the project's Alembic has made the ledger's table."""
    if config.database_url is not None or not makes_ledger(config.ledger):
        return None
    return (
        f"This project's Alembic makes the table {config.ledger}. The run begins when it has. In another shell, type: "
        "eval $(python -m worker env) && alembic upgrade head"
    )


def await_alembic(config: Config, urls: Urls) -> None:
    """Wait until the project's Alembic has made the ledger's table."""
    asyncio.run(await_ledger(urls.database, config.ledger))


def find() -> dict[str, str] | None:
    """The variables of the servers that were started last in this project and answer; None if there are none."""
    files = map(_read, sorted(_FOLDER.glob("servers-*.json"), key=_age))
    return asyncio.run(_first_to_answer([urls for urls in files if urls]))


def as_shell(urls: Mapping[str, str]) -> str:
    """Shell code that sets the variables, for ``eval``. It is one line, as an unquoted ``$(...)`` joins lines."""
    return "export " + " ".join(f"{variable}={shlex.quote(url)}" for variable, url in urls.items())


async def _make_ledger(url: str, name: str) -> None:
    from worker.ledger.migrate import upgrade  # noqa: PLC0415 - Alembic is slow to import and rarely needed

    database = db.Database(url)
    try:
        await upgrade(database, name)
    finally:
        await database.dispose()


async def _first_to_answer(candidates: list[dict[str, str]]) -> dict[str, str] | None:
    for urls in candidates:
        if await _all_answer(urls):
            return urls
    return None


async def _all_answer(urls: Mapping[str, str]) -> bool:
    try:
        async with asyncio.timeout(_TIMEOUT):
            if "DATABASE_URL" in urls:
                await _ask_database(urls["DATABASE_URL"])
            if "REDIS_URL" in urls:
                await _ask_redis(urls["REDIS_URL"])
    except (db.DbError, SQLAlchemyError, RedisError, OSError):
        return False
    return True


async def _ask_database(url: str) -> None:
    database = db.Database(url)
    try:
        await database.check()
    finally:
        await database.dispose()


async def _ask_redis(url: str) -> None:
    broker = Broker(url)
    try:
        await broker.ping()
    finally:
        await broker.close()


def _missing(config: Config) -> list[str]:
    given = {"DATABASE_URL": config.database_url, "REDIS_URL": config.redis_url}
    return [variable for variable, url in given.items() if url is None]


def _started(config: Config, urls: Urls) -> dict[str, str]:
    """The URLs of the servers that were started. The user's own URLs, which may hold a password, are left out."""
    both = {"DATABASE_URL": urls.database, "REDIS_URL": urls.redis}
    return {variable: both[variable] for variable in _missing(config)}


@contextmanager
def _published(urls: Mapping[str, str]) -> Iterator[None]:
    if not urls:
        yield
        return
    file = _write(urls)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def _write(urls: Mapping[str, str]) -> Path:
    file = _FOLDER / f"servers-{os.getpid()}.json"
    try:
        _FOLDER.mkdir(mode=0o700, exist_ok=True)
        (_FOLDER / ".gitignore").write_text("*\n")
        _remove_stale_files()
        file.write_text(json.dumps(dict(urls)))
    except OSError as error:
        raise EmbeddedServerError(
            f"{file}: {error.strerror}: set {' and '.join(urls)}, or start in a folder that you may write to"
        ) from None
    return file


def _read(file: Path) -> dict[str, str]:
    """The URLs in a file; empty if the file has just been removed or is being written."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return {variable: content[variable] for variable in _SERVER_NAMES if variable in content}


def _age(file: Path) -> float:
    try:
        return -file.stat().st_mtime
    except OSError:
        return 0.0


def _remove_stale_files() -> None:
    """Remove the files of processes that have ended."""
    for file in _FOLDER.glob("servers-*.json"):
        owner = file.stem.removeprefix("servers-")
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            file.unlink(missing_ok=True)
