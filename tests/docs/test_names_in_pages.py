"""Each command and each setting that a page names exists."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from worker.cli import app
from worker.config import Config

PROJECT = Path(__file__).parents[2]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]

_COMMAND = re.compile(r"(?:^|[\s`$(])(?:tandem|python -m worker) ([a-z][a-z-]*)((?: +(?!#)[^\s`|&;]+)*)", re.MULTILINE)
_SETTING = re.compile(r"\b(WORKER_[A-Z][A-Z_]*[A-Z])\b")
_CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
# A setting of processes that enqueue; and two names of taskiq's.
_OTHER_VARIABLES = frozenset({"WORKER_REQUIRE_SCOPE", "WORKER_STARTUP", "WORKER_SHUTDOWN"})


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """The commands in the code of a page, each with the words after it."""
    for code in _CODE.findall(page.read_text()):
        for name, words in _COMMAND.findall(code):
            yield name, words.split()


def command_of(name: str, words: list[str]) -> Any:
    """The command, or the command of a group, that these words are for. None if there is none."""
    root: Any = typer.main.get_command(app)
    if name not in root.commands:
        return None
    found = root.load(name)
    is_group = hasattr(found, "commands")
    return found.commands.get(words[0]) if is_group and words and words[0].isalpha() else found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_command_and_each_of_its_options_exists(page: Path) -> None:
    """`tandem queues pause --for 5m`: the group, the command and the option."""
    for name, words in commands(page):
        command = command_of(name, words)
        assert command is not None, f"tandem {name} {' '.join(words)}"
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        given = {word.partition("=")[0].rstrip(".,:") for word in words if re.match("--[a-z]", word)}
        assert given <= options | {"--help"}, f"tandem {name} {' '.join(words)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_setting_exists(page: Path) -> None:
    """`WORKER_KEEP_JOBS` is `keep_jobs` of `Config`."""
    settings = {f"WORKER_{name.upper()}" for name in Config.model_fields} | _OTHER_VARIABLES
    assert set(_SETTING.findall(page.read_text())) <= settings


def test_the_pages_name_commands_and_settings() -> None:
    """The check reads what is there."""
    assert sum(len(list(commands(page))) for page in PAGES) > 100
    assert sum(len(_SETTING.findall(page.read_text())) for page in PAGES) > 100
