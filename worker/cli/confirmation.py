"""Asking for confirmation before many jobs are changed."""

import sys

import typer

from worker.errors import ConfigError


def confirm(question: str, action: str) -> bool:
    """Ask a yes-or-no question on the terminal. False also if the user presses Ctrl-C.

    Args:
        action: what is to be done, for the error: "retry 5 jobs".

    Raises:
        ConfigError: standard input is not a terminal.
    """
    if not sys.stdin.isatty():
        raise ConfigError(f"stdin is not a terminal: pass --yes to {action}")
    try:
        return typer.confirm(question, err=True)
    except typer.Abort:
        return False
