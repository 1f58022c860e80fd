"""The table of commands, which are imported when they are called."""

from typing import Any

import pytest
from typer.testing import CliRunner

from worker.cli import COMMANDS, app
from worker.cli.lazy_group import LazyCommand


@pytest.mark.parametrize("lazy", COMMANDS, ids=[lazy.name for lazy in COMMANDS])
def test_the_table_has_the_first_paragraph_of_the_help_of_each_command(lazy: LazyCommand) -> None:
    """The group's help shows the table's text, and the command's own help begins with it."""
    command = lazy.load()
    assert command.name == lazy.name
    assert " ".join(command.help.partition("\n\n")[0].split()) == lazy.help


def test_the_help_lists_each_command_with_its_text() -> None:
    """The help of the group has a line for each command, under the heading of its panel."""
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "300"}).output
    for lazy in COMMANDS:
        assert lazy.panel in shown
        assert any(lazy.name in line and lazy.help in line for line in shown.splitlines())


def test_an_unknown_command_is_refused_with_the_nearest_ones() -> None:
    """A typo imports nothing, and the error names what may be meant."""
    done: Any = CliRunner().invoke(app, ["helth"])
    assert done.exit_code == 2
    assert "health" in done.output


@pytest.mark.parametrize(
    ("words", "completed"),
    [("tandem he", "health"), ("tandem queues pa", "pause"), ("tandem run --conc", "--concurrency")],
)
def test_the_shell_completes_commands_and_their_options(words: str, completed: str) -> None:
    """Names of commands, of commands in a group, and options of a command."""
    environment = {"_TANDEM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    shown = CliRunner().invoke(app, prog_name="tandem", env=environment).output
    assert completed in shown.split()
