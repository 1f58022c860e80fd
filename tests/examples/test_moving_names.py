"""docs/moving: what the pages give for a name of Celery's, SAQ's or taskiq's exists in Tandem, and their task runs."""

import os
import re
import sys
from pathlib import Path

import pytest

from tests.commands import bare_environment
from tests.examples.names import KNOWN, code_problems, missing_settings, unknown_commands
from tests.examples.terminals import Terminal, blocks
from worker import cron

FOLDER = Path(__file__).parents[2] / "docs" / "moving"
LIBRARIES = ("celery", "saq", "taskiq")
PAGES = {name: (FOLDER / f"from-{name}.md").read_text() for name in LIBRARIES}
# Values, names of files, and words of others, in the column of ours.
NOT_OURS = {"REDIS_URL", "DATABASE_URL", "LIFESPAN", "otel", "def", "group_key", "idle_timeout", "sweep", "timeout"}
_CELL = re.compile(r" \| ")


def rows(page: str) -> list[list[str]]:
    """The rows of all tables that give a name of ours for one of theirs."""
    lines = [line for line in page.partition("## What is different")[0].splitlines() if line.startswith("| ")]
    cells = [_CELL.split(line.removeprefix("| ").removesuffix(" |")) for line in lines]
    return [row for row in cells if row[1] != "Tandem"]


def ours(page: str) -> list[str]:
    """The code in the column of Tandem's, besides that which names what is not there."""
    return [code for row in rows(page) for code in re.findall(r"`([^`]+)`", row[1])]


CODE = sorted({code for page in PAGES.values() for code in ours(page)} - NOT_OURS)
COMMANDS = [code for code in CODE if code.startswith("tandem ")]
SETTINGS = [code for code in CODE if code.startswith("WORKER_")]
PYTHON = [code for code in CODE if code not in COMMANDS and code not in SETTINGS]


@pytest.mark.parametrize("library", LIBRARIES)
def test_each_row_has_two_cells_and_says_something(library: str) -> None:
    """Of at least thirty rows."""
    found = rows(PAGES[library])
    assert len(found) > 30
    assert [row for row in found if len(row) != 2 or not row[1]] == []


def test_the_commands_of_the_pages_exist() -> None:
    """With their options and arguments."""
    assert len(COMMANDS) > 15
    assert unknown_commands(COMMANDS) == []


def test_the_settings_of_the_pages_exist() -> None:
    """In all of their text."""
    assert len(SETTINGS) > 5
    assert [missing_settings(_without_theirs(page)) for page in PAGES.values()] == [[], [], []]


def _without_theirs(page: str) -> str:
    """Without the names of taskiq's events, which look like settings."""
    return page.replace("`WORKER_STARTUP`", "").replace("`WORKER_SHUTDOWN`", "")


@pytest.mark.parametrize("code", PYTHON)
def test_the_python_of_the_pages_names_what_exists(code: str) -> None:
    """Each name, attribute and keyword."""
    assert code_problems(code) == []


@pytest.mark.parametrize("code", [code for code in PYTHON if code.startswith("@cron")])
def test_the_schedules_of_the_pages_are_schedules(code: str) -> None:
    """`@cron` takes them."""

    async def sweep() -> None: ...

    assert eval(code.removeprefix("@"), {**KNOWN, "cron": cron})(sweep).schedule


@pytest.mark.parametrize("library", LIBRARIES)
async def test_the_task_of_a_page_is_one(library: str, tmp_path: Path, database_url: str, redis_url: str) -> None:
    """Its files and its command, as a reader uses them."""
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = bare_environment(DATABASE_URL=database_url, REDIS_URL=redis_url) | {"PATH": programs}
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "__init__.py").touch()
    with Terminal(tmp_path, environment) as terminal:
        for block in blocks(PAGES[library]):
            if block.language == "python" and block.text.startswith("# tasks/"):
                name, text = block.file
                (tmp_path / name).write_text(text)
            for command, shown in block.commands:
                await terminal.type(command, shown)
        await terminal.type("tandem enqueue send_receipt --arg order_id=7 --id r7", "r7")


def test_wrong_code_is_seen() -> None:
    """So that the tests above are worth something."""
    assert code_problems("send.usnig(delay=60)")
    assert code_problems("send.using(dealy=60)")
    assert code_problems("await job.resutl()")
    assert code_problems("@task(max_retries=3)")
    assert code_problems("JobStatus.pending")
    assert unknown_commands(["tandem jobs lsit", "tandem jobs list --stat done", "tandem jobs abort"]) == [
        "tandem jobs lsit",
        "tandem jobs list --stat done",
        "tandem jobs abort",
    ]
    assert missing_settings("WORKER_QUEUE, WORKER_QUEU") == ["QUEU"]
