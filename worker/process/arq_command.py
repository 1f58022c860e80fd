"""The command ``arq``, seen from the settings that it has just imported: before it makes its worker.

1. It runs on the event loop that is current, so it is given ours (arq 0.28, ``worker.py``: `Worker.__init__`). A policy
   would do it too, but Python 3.14 deprecates those, and setting one changes loops that are none of our business.
2. Its ``--watch`` imports nothing anew, and so runs the old code again: it is refused.
"""

import asyncio
import shlex
from functools import cache

import click
from arq.cli import cli

from worker.errors import ConfigError
from worker.process.event_loop import new_event_loop


def prepare() -> None:
    """Do both, if that command runs in this process.

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
