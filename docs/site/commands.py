"""The page of the command line's reference: the help of each command, as the terminal shows it."""

from collections.abc import Iterator
from typing import Any

import click
import typer
from typer.testing import CliRunner

from worker.cli import app

_WIDTH = "100"  # columns

_INTRODUCTION = """# Commands

This page is the `--help` of each command. [The command line](command-line.md) says what they have in common: output for
programs, exit codes, and questions.
"""


def command_page() -> str:
    """Return the page, as Markdown."""
    return "\n".join([_INTRODUCTION, *_sections(typer.main.get_command(app), ["tandem"])])


def _sections(command: Any, path: list[str]) -> Iterator[str]:
    """The sections of a command and of the commands in it."""
    yield f"{'#' * min(len(path) + 1, 4)} `{' '.join(path)}`\n\n```text\n{_help(path[1:])}\n```\n"
    if isinstance(command, click.Group) or hasattr(command, "list_commands"):
        context = click.Context(command)
        for name in command.list_commands(context):
            load = getattr(command, "load", lambda name: command.get_command(context, name))
            yield from _sections(load(name), [*path, name])


def _help(path: list[str]) -> str:
    environment = {"TERMINAL_WIDTH": _WIDTH, "COLUMNS": _WIDTH, "NO_COLOR": "1", "TERM": "dumb"}
    result = CliRunner().invoke(app, [*path, "--help"], prog_name="tandem", env=environment)
    return "\n".join(line.rstrip() for line in result.output.strip("\n").splitlines())
