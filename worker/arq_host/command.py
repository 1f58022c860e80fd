"""The command ``arq``, seen from the settings that it has just imported: before it makes its worker.

1. It runs on the event loop that is current, so it is given ours (arq 0.28, ``worker.py``: `Worker.__init__`). A policy
   would do it too, but Python 3.14 deprecates those, and setting one changes loops that are none of our business.
2. Its ``--watch`` imports nothing anew, and so runs the old code again: it is refused.
3. It shows a traceback for whatever ends it but `SystemExit`, so that is how a problem is told: in a line.
4. It hears no signals until it has made its worker: importing the tasks may take long, and the first process of a
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
    """Do the last of these, if that command runs a worker in this process."""
    context = _context()
    if context is not None and not context.params["check"]:
        _leave_on_signal()


def prepare() -> None:
    """Do the first two, if that command runs in this process.

    Raises:
        ConfigError: it was asked to ``--watch``.
    """
    context = _context()
    if context is None:
        return
    if context.params["watch"]:
        folder = shlex.quote(context.params["watch"])
        raise ConfigError(f"arq --watch runs the old code again: use 'python -m worker run --watch {folder}' instead")
    if not context.params["check"]:
        _give_loop()


def _context() -> click.Context | None:
    context = click.get_current_context(silent=True)
    return context if context is not None and context.command is cli else None


@cache
def _leave_on_signal() -> None:
    leave_on_signal(until_empty=False)


@cache
def _give_loop() -> None:
    asyncio.set_event_loop(new_event_loop())


def end_with(message: str, *, code: int) -> NoReturn:
    """End the process, with these lines on standard error."""
    print(printable_lines(message), file=sys.stderr)  # noqa: T201 - for a person, who may have set up no logging
    raise SystemExit(code)
