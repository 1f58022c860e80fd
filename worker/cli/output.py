"""Where commands speak to: results to standard output, all else to standard error."""

import sys
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

FAILED, MISTAKE = 1, 2
"""Exit codes."""

out = Console(highlight=False, soft_wrap=True)
err = Console(highlight=False, soft_wrap=True, stderr=True)


def print_all(lines: Iterable[Text], console: Console) -> None:
    for line in lines:
        console.print(line)


def wide_out() -> Console:
    """A table fits the terminal; in a file, or for ``grep``, a row is a line however long."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 10_000)


def explain(why: str, exit_code: int) -> int:
    """Say why it did not go well; the exit code."""
    err.print(Text(why, style="red"))
    return exit_code
