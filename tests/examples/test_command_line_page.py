"""docs/reference/command-line.md names the commands that the program has."""

import re
from pathlib import Path
from typing import Any

import pytest

from worker.cli import COMMANDS

PAGE = (Path(__file__).parents[2] / "docs/reference/command-line.md").read_text()
_ROWS = dict(re.findall(r"^\| `tandem ([a-z-]+)[^`]*` \| (.*) \|$", PAGE, re.MULTILINE))
_COMMANDS: dict[str, Any] = {lazy.name: lazy.load() for lazy in COMMANDS}


def test_the_table_has_every_command_and_no_other() -> None:
    assert set(_ROWS) == set(_COMMANDS)


@pytest.mark.parametrize("name", ["jobs", "queues", "workers", "schedules"])
def test_the_row_of_a_group_names_its_commands(name: str) -> None:
    assert set(re.findall(r"`([a-z-]+)`", _ROWS[name])) == set(_COMMANDS[name].commands)


def test_every_command_of_the_examples_exists() -> None:
    """With its options."""
    examples = [line.split() for line in re.findall(r"^\$ tandem (.*)$", PAGE, re.MULTILINE)]
    assert examples
    for words in examples:
        command = _COMMANDS[words[0]]
        if hasattr(command, "commands"):
            command = command.commands[words[1]]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options
