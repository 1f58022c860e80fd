"""The command ``arq``, prepared by the settings that it has just imported, before it creates its worker.

1. It runs on the current event loop, so the settings set one (arq 0.28, ``worker.py``: `Worker.__init__`). A policy
   would do that too, but Python 3.14 deprecates policies, and a policy would change all loops of the process.
2. Its ``--watch`` does not import modules again, and so would run the old code. It is refused.
3. It prints a traceback for any exception but `SystemExit`. So problems are printed in one line before a `SystemExit`.
4. It handles no signals until it has created its worker. Importing the tasks may take long, and the first process of a
   container is not even killed by a signal that it does not handle.
"""

import asyncio
import shlex
import sys
from functools import cache
from typing import NoReturn

import click
from arq.cli import cli

from db.text.printable import printable_lines
from worker.errors import ConfigError
from worker.process.event_loop import new_event_loop
from worker.process.stop_signals import leave_on_signal


def leave_on_signal_meanwhile() -> None:
    """Handle signals from now on (rule 4), if the command runs a worker in this process."""
    context = _context()
    if context is not None and not context.params["check"]:
        _leave_on_signal()


def prepare() -> None:
    """Set the event loop and refuse ``--watch`` (rules 1 and 2), if the command runs in this process.

    Raises:
        ConfigError: the command was started with ``--watch``.
    """
    context = _context()
    if context is None:
        return
    if context.params["watch"]:
        folder = shlex.quote(context.params["watch"])
        raise ConfigError(f"arq --watch runs the old code again: use 'python -m worker run --watch {folder}' instead")
    if not context.params["check"]:
        _set_loop()


def runs_here() -> bool:
    """Whether this process runs arq's command."""
    return _context() is not None


def _context() -> click.Context | None:
    context = click.get_current_context(silent=True)
    return context if context is not None and context.command is cli else None


@cache
def _leave_on_signal() -> None:
    leave_on_signal(until_empty=False)


@cache
def _set_loop() -> None:
    asyncio.set_event_loop(new_event_loop())


def refuse(error: Exception) -> NoReturn:
    """Raise `error`. arq's command ends with its lines instead, and code 2."""
    if _context() is None:
        raise error
    end_with(str(error), code=2)


def end_with(message: str, *, code: int) -> NoReturn:
    """Print `message` on standard error, and end the process."""
    print(printable_lines(message), file=sys.stderr)  # noqa: T201 - logging may not be set up
    raise SystemExit(code)
