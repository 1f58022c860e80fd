"""Log lines in arq's format, unless the project has set up logging itself."""

import logging

from db.text.printable import printable

_OURS = ("worker", "db")


def log_as_arq_does() -> None:
    """Log through arq's handlers, as arq sets up only its own logger."""
    if logging.getLogger().handlers:
        return
    arq = logging.getLogger("arq")
    for logger in map(logging.getLogger, _OURS):
        if not logger.handlers:
            logger.handlers, logger.level, logger.propagate = list(arq.handlers), arq.level, False


def log_without_arq(name: str | None = None) -> None:
    """Log to standard error in arq's format, with `name` before each message, in a process without arq."""
    if logging.getLogger().handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(_Format(name))
    for logger in map(logging.getLogger, _OURS):
        if not logger.handlers:
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
            logger.propagate = False


class _Format(logging.Formatter):
    def __init__(self, name: str | None) -> None:
        # The format would take a % in the name for a field.
        before = "" if name is None else f"{printable(name).replace('%', '%%')}: "
        super().__init__(f"%(asctime)s: {before}%(message)s", "%H:%M:%S")
