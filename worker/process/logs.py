"""Log lines as arq users know them, unless the project has set up logging itself."""

import logging

from db.text.printable import printable

_OURS = ("worker", "db")


def log_as_arq_does() -> None:
    """Under arq, which sets up its own logger alone: ours speak through its handlers."""
    if logging.getLogger().handlers:
        return
    arq = logging.getLogger("arq")
    for logger in map(logging.getLogger, _OURS):
        if not logger.handlers:
            logger.handlers, logger.level, logger.propagate = list(arq.handlers), arq.level, False


def log_without_arq(name: str | None = None) -> None:
    """In a process of our own: to standard error, in arq's format, with `name` before each message."""
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
        # A name may hold a %, which the format would take for a field.
        before = "" if name is None else f"{printable(name).replace('%', '%%')}: "
        super().__init__(f"%(asctime)s: {before}%(message)s", "%H:%M:%S")
