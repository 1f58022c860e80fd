"""The names of Tandem's in docs/moving/arq-fleet.md exist: options, settings, commands and methods."""

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import worker
import worker.message
from worker import Job, Retry, Task, cron, task
from worker.cli import app
from worker.config import Config

PAGE = (Path(__file__).parents[2] / "docs" / "moving" / "arq-fleet.md").read_text()
TABLES = dict(re.findall(r"^## (Names from \w+|What [^\n]*)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
CALLEES: dict[str, Any] = {"task": task, "cron": cron, "using": Task.using, "result": Job.result, "Retry": Retry}
METHODS = {"enqueue", "enqueue_sync", "using", "result", "status", "abort"}


def ours(table: str) -> list[str]:
    """The code in the last column of a table."""
    rows = [line.rsplit(" | ", 1)[1] for line in TABLES[table].splitlines() if line.startswith("| ")]
    return [code for row in rows[1:] for code in re.findall(r"`([^`]+)`", row)]


CODE = [code for table in TABLES if table.startswith("Names") for code in ours(table)]


def calls(code: str) -> list[ast.Call]:
    """The calls in code of the page, where ``...`` stands for any value."""
    try:
        tree = ast.parse(code.replace("(...))", "...)").removeprefix("@"))
    except SyntaxError:
        return []
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_the_options_that_the_page_gives_to_calls_exist() -> None:
    """Each keyword is a parameter of what it is given to, and each method is one of a task's or a job's."""
    keywords = []
    for call in (call for code in CODE for call in calls(code)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if isinstance(call.func, ast.Attribute):
            assert name in METHODS
        if name in CALLEES:
            keywords += [(name, keyword.arg) for keyword in call.keywords]
    assert len(keywords) > 15
    parameters = {name: inspect.signature(callee).parameters for name, callee in CALLEES.items()}
    assert [(name, keyword) for name, keyword in keywords if keyword not in parameters[name]] == []


def test_the_settings_and_commands_that_the_page_names_exist() -> None:
    """Each WORKER_ setting is one of Config's, and each command of ours has its options."""
    tandem_part = "\n".join([*CODE, PAGE.partition("## Names from")[0]])
    settings = set(re.findall(r"\bWORKER_(\w+)", tandem_part))
    assert settings
    assert {name.lower() for name in settings} <= Config.model_fields.keys()
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for line in re.findall(r"tandem ((?:[a-z]+ ?)+)((?:--[a-z]+)?)", tandem_part):
        words, option = line[0].split(), line[1]
        command = commands[words[0]]
        if len(words) > 1 and hasattr(command, "commands"):
            command = command.commands[words[1]]
        assert not option or option in {name for parameter in command.params for name in parameter.opts}


def test_there_are_at_most_ten_differences_each_with_a_reason_and_a_test() -> None:
    """The test's file exists."""
    lines = [line for line in TABLES["What stays different from arq"].splitlines() if line.startswith("| ")]
    rows = [line.strip("| ").split(" | ") for line in lines[1:]]
    assert 0 < len(rows) <= 10
    for _, reason, tested in rows:
        assert reason.strip().endswith(".")
        assert (Path(__file__).parents[2] / tested.strip().strip("`")).is_file()


@pytest.mark.parametrize("name", ["worker.serialize", "worker.deserialize", "worker.message.deserialize_trusting"])
def test_the_codecs_that_the_page_names_exist(name: str) -> None:
    """By the path that the page gives."""
    assert f"`{name}`" in PAGE
    module = worker.message if name.count(".") > 1 else worker
    assert callable(getattr(module, name.rpartition(".")[2]))
