"""Warnings about environment variables that look like settings and are none."""

from worker.cli.output import err, printable_text
from worker.config import Config


def warn_of_typos() -> None:
    """Print a line for each likely typo of a setting's name."""
    for typo in Config.likely_typos():
        err.print(printable_text(typo, style="yellow"))
