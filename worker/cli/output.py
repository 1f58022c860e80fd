"""The output of commands: results to standard output, everything else to standard error.

Ids, names and errors come from outside. `printable_text` prints them literally: no markup, no control characters.
"""

import sys
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from db.text.printable import printable, printable_lines

FAILED, MISTAKE = 1, 2
"""Exit codes."""

out = Console(highlight=False, soft_wrap=True)
err = Console(highlight=False, soft_wrap=True, stderr=True)


def printable_text(*parts: str | tuple[str, str], style: str = "") -> Text:
    """Join the parts, each with or without a style, into one line."""
    whole = [(part, "") if isinstance(part, str) else part for part in parts]
    return Text.assemble(*((printable(text), of_part) for text, of_part in whole), style=style)


def print_all(lines: Iterable[Text], console: Console) -> None:
    for line in lines:
        console.print(line)


def wide_out() -> Console:
    """A console for tables. On a terminal a table fits the width; elsewhere each row is one line, for ``grep``."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 10_000)


def explain(why: str, exit_code: int) -> int:
    """Print an error, in as many lines as `why` has; return the exit code."""
    err.print(Text(printable_lines(why), style="red"))
    return exit_code
