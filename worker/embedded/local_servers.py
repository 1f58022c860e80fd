"""The servers of a project that names none: embedded ones, for as long as one of its processes runs.

That process leaves a note in ``.tandem/``, by which others find them (``python -m worker env``) while they answer.
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

_FOLDER = Path(".tandem")
_PATIENCE = 5.0  # seconds
_WHAT = {"DATABASE_URL": "PostgreSQL", "REDIS_URL": "Redis"}


@contextmanager
def local_servers(config: Config) -> Iterator[Urls]:
    """Both servers' URLs. One that is not set is started for as long as the block lasts, and can be found meanwhile.

    A database that is started has the ledger's table.

    Raises:
        EmbeddedServerError: a server cannot be started, or no note of it left.
    """
    with servers(config.database_url, config.redis_url) as urls:
        if config.database_url is None:
            asyncio.run(_make_ledger(urls.database, config.ledger))
        with _announced(_started(config, urls)):
            yield urls


def message(config: Config) -> str | None:
    """What to tell the user about servers that are started because `config` names none; None if it names both."""
    missing = _missing(config)
    if not missing:
        return None
    one = len(missing) == 1
    what = " and ".join(f"a {_WHAT[variable]}" for variable in missing)
    return (
        f"{' and '.join(missing)} {'is' if one else 'are'} not set: this run has {what} of its own, empty, and gone "
        f"when it ends.\nOther processes of this project reach {'it' if one else 'them'} after: "
        "eval $(python -m worker env)"
    )


def find() -> dict[str, str] | None:
    """The variables of the servers that were started last in this project, of those that answer; None without any."""
    notes = map(_read, sorted(_FOLDER.glob("servers-*.json"), key=_age))
    return asyncio.run(_first_to_answer([urls for urls in notes if urls]))


def as_shell(urls: Mapping[str, str]) -> str:
    """For ``eval``. One line, as a shell joins the lines of an unquoted ``$(...)`` into one."""
    return "export " + " ".join(f"{variable}={shlex.quote(url)}" for variable, url in urls.items())


async def _make_ledger(url: str, name: str) -> None:
    from worker.ledger.migrate import upgrade  # noqa: PLC0415 - Alembic takes a while to import, and is rarely needed

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
        async with asyncio.timeout(_PATIENCE):
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
    """The URLs of those that we have started: others may hold a password, and are none of our business."""
    both = {"DATABASE_URL": urls.database, "REDIS_URL": urls.redis}
    return {variable: both[variable] for variable in _missing(config)}


@contextmanager
def _announced(urls: Mapping[str, str]) -> Iterator[None]:
    if not urls:
        yield
        return
    note = _write_note(urls)
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def _write_note(urls: Mapping[str, str]) -> Path:
    note = _FOLDER / f"servers-{os.getpid()}.json"
    try:
        _FOLDER.mkdir(mode=0o700, exist_ok=True)
        (_FOLDER / ".gitignore").write_text("*\n")
        _remove_notes_of_the_dead()
        note.write_text(json.dumps(dict(urls)))
    except OSError as error:
        raise EmbeddedServerError(f"{note}: {error.strerror}: set {' and '.join(urls)}, or start elsewhere") from None
    return note


def _read(note: Path) -> dict[str, str]:
    """A note's URLs; none where it has just been removed, or is being written."""
    try:
        content = json.loads(note.read_text())
    except (OSError, ValueError):
        return {}
    return {variable: content[variable] for variable in _WHAT if variable in content}


def _age(note: Path) -> float:
    try:
        return -note.stat().st_mtime
    except OSError:
        return 0.0


def _remove_notes_of_the_dead() -> None:
    for note in _FOLDER.glob("servers-*.json"):
        owner = note.stem.removeprefix("servers-")
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            note.unlink(missing_ok=True)
