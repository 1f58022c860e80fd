"""Whether a project's own Alembic makes the ledger's table, and the wait until it has.

Embedded servers come with the ledger. If a revision of the project makes the table by itself, without asking whether it
exists, that revision would fail. Then the table is left to it.
"""

import asyncio
import configparser
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

import db
from worker.errors import LedgerError
from worker.ledger.schema_check import check

_PAUSE = 0.5  # seconds between two looks for the table


def makes_ledger(name: str) -> bool:
    """Whether a revision of the Alembic in the working directory has a ``create_table`` of the ledger's table."""
    folder = _folder()
    if folder is None:
        return False
    bare = name.rpartition(".")[2]
    creates = re.compile(rf"create_table\(\s*['\"]{re.escape(bare)}['\"]")
    return any(creates.search(file.read_text(errors="replace")) for file in folder.rglob("*.py"))


async def await_ledger(url: str, name: str) -> None:
    """Wait, without a limit, until the database has the ledger's table with all of its columns."""
    database = db.Database(url)
    try:
        while True:
            try:
                await check(database, name)
            except LedgerError:
                await asyncio.sleep(_PAUSE)
            else:
                return
    finally:
        await database.dispose()


def _folder() -> Path | None:
    """The folder of the project's migrations. None if it has no Alembic, or one that is configured in another way."""
    here = str(Path.cwd())
    location = _options().get("script_location")
    if not isinstance(location, str):
        return None
    folder = Path(location.replace("%(here)s", here))
    return folder if folder.is_dir() else None


def _options() -> Mapping[str, object]:
    """The options of Alembic: those of ``pyproject.toml``, and over them those of ``alembic.ini``."""
    options: dict[str, object] = {}
    ini = configparser.RawConfigParser()
    try:
        if Path("pyproject.toml").is_file():
            options |= tomllib.loads(Path("pyproject.toml").read_text()).get("tool", {}).get("alembic", {})
        ini.read("alembic.ini")
    except (OSError, ValueError, configparser.Error):
        return {}  # Alembic itself says what is wrong with it
    return options | (dict(ini["alembic"]) if ini.has_section("alembic") else {})
