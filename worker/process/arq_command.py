"""The command ``arq``, seen from the settings that it has just imported: before it makes its worker.

1. It runs on the event loop that is current, so it is given ours (arq 0.28, ``worker.py``: `Worker.__init__`). A policy
   would do it too, but Python 3.14 deprecates those, and setting one changes loops that are none of our business.
2. Its ``--watch`` imports nothing anew, and so runs the old code again: it is refused.
3. It shows a traceback for whatever ends it but `SystemExit`, so that is how a problem is told: in a line.
"""

import asyncio
import shlex
import sys
from functools import cache
from typing import NoReturn

import click
from arq.cli import cli

from db.printable import printable_lines
from worker.errors import ConfigError
from worker.process.event_loop import new_event_loop


def prepare() -> None:
    """Do the first two, if that command runs in this process.

    Raises:
        ConfigError: it was asked to ``--watch``.
    """
    context = click.get_current_context(silent=True)
    if context is None or context.command is not cli:
        return
    if context.params["watch"]:
        folder = shlex.quote(context.params["watch"])
        raise ConfigError(f"arq --watch runs the old code again: use 'python -m worker run --watch {folder}' instead")
    if not context.params["check"]:
        _give_loop()


@cache
def _give_loop() -> None:
    asyncio.set_event_loop(new_event_loop())


def end_with(message: str, *, code: int) -> NoReturn:
    """End the process, with these lines on standard error."""
    print(printable_lines(message), file=sys.stderr)  # noqa: T201 - for a person, who may have set up no logging
    raise SystemExit(code)
