"""The names of Tandem's in docs/moving/arq-fleet.md exist: settings, commands and codecs."""

import re
from pathlib import Path

import pytest

import worker
import worker.message
from tests.examples.names import missing_settings, unknown_commands

PROJECT = Path(__file__).parents[2]
PAGE = (PROJECT / "docs" / "moving" / "arq-fleet.md").read_text()


def test_the_settings_and_commands_that_the_page_names_exist() -> None:
    """Each WORKER_ setting is one of Config's, and each command of ours has its options."""
    assert "WORKER_ACCEPT_PICKLE" in PAGE
    assert missing_settings(PAGE) == []
    commands = re.findall(r"(?<=`)tandem [^`]+|(?<=^\$ )tandem .*$", PAGE, re.MULTILINE)
    assert len(commands) > 2
    assert unknown_commands(commands) == []


def test_there_are_at_most_ten_differences_each_with_a_reason_and_a_test() -> None:
    """The test's file exists."""
    section = PAGE.partition("## What stays different from arq")[2]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    rows = [line.strip("| ").split(" | ") for line in lines[1:]]
    assert 0 < len(rows) <= 10
    for _, reason, tested in rows:
        assert reason.strip().endswith(".")
        assert (PROJECT / tested.strip().strip("`")).is_file()


@pytest.mark.parametrize("name", ["worker.serialize", "worker.deserialize", "worker.message.deserialize_trusting"])
def test_the_codecs_that_the_page_names_exist(name: str) -> None:
    """By the path that the page gives."""
    assert f"`{name}`" in PAGE
    module = worker.message if name.count(".") > 1 else worker
    assert callable(getattr(module, name.rpartition(".")[2]))
