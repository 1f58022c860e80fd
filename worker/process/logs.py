"""Setting up the log of a process: ``WORKER_LOG``, else arq's format, unless the project has set up logging itself."""

import logging
import sys
from typing import Literal

from db.text.printable import printable
from worker.telemetry.log_lines import JobFilter, JsonFormatter, TextFormatter

LogFormat = Literal["json", "text"]

_OURS = ("worker", "db")
_FORMATTERS: dict[LogFormat, type[JsonFormatter] | type[TextFormatter]] = {"json": JsonFormatter, "text": TextFormatter}


def log_under_arq(log_format: LogFormat | None) -> None:
    """Log as `log_format` says, else through arq's handlers, as arq sets up only its own logger."""
    if log_format is not None:
        _take_over(log_format)
        return
    if logging.getLogger().handlers:
        return
    arq = logging.getLogger("arq")
    for logger in map(logging.getLogger, _OURS):
        if not logger.handlers:
            logger.handlers, logger.level, logger.propagate = list(arq.handlers), arq.level, False


def log_without_arq(log_format: LogFormat | None = None, name: str | None = None) -> None:
    """Log as `log_format` says, else to standard error in arq's format, with `name` before each message."""
    if log_format is not None:
        _take_over(log_format, name)
        return
    if logging.getLogger().handlers:
        return
    handler = logging.StreamHandler()
    # The format would take a % in the name for a field.
    before = "" if name is None else f"{printable(name).replace('%', '%%')}: "
    handler.setFormatter(logging.Formatter(f"%(asctime)s: {before}%(message)s", "%H:%M:%S"))
    for logger in map(logging.getLogger, _OURS):
        if not logger.handlers:
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
            logger.propagate = False


def log_under_arq_from_its_first_line(log_format: LogFormat) -> None:
    """Do as `log_under_arq` now, and again when arq's worker logs its first line.

    arq's command configures logging between the two: it imports the settings first, and then calls `dictConfig`, which
    gives the logger ``arq`` a handler of its own.
    """
    _take_over(log_format)
    logging.getLogger("arq.worker").addFilter(_AtFirstLine(log_format))


class _AtFirstLine(logging.Filter):
    """Sets up the log before the first line of a logger reaches a handler."""

    def __init__(self, log_format: LogFormat) -> None:
        super().__init__()
        self._log_format = log_format
        self._is_done = False

    def filter(self, _record: logging.LogRecord) -> bool:
        if not self._is_done:
            self._is_done = True
            _take_over(self._log_format)
        return True


def _take_over(log_format: LogFormat, name: str | None = None) -> None:
    """Let the lines of all loggers go to standard error in `log_format`, once each.

    Handlers that the project has added for anything but a terminal stay as they are.
    """
    root = logging.getLogger()
    if not root.handlers:
        root.setLevel(logging.INFO)
    handlers = [handler for handler in root.handlers if _is_for_terminal(handler)]
    if not handlers:
        handlers = [logging.StreamHandler()]
        root.addHandler(handlers[0])
    for handler in handlers:
        handler.setFormatter(_FORMATTERS[log_format](name))
        if not any(isinstance(each, JobFilter) for each in handler.filters):
            handler.addFilter(JobFilter())
    arq = logging.getLogger("arq")
    for logger in (arq, *map(logging.getLogger, _OURS)):
        logger.handlers = [handler for handler in logger.handlers if not _is_for_terminal(handler)]
        logger.propagate, logger.disabled = True, False
        if logger.level in (logging.NOTSET, logging.INFO):
            logger.setLevel(arq.level or logging.INFO)  # `arq --verbose` sets its level to DEBUG


def _is_for_terminal(handler: logging.Handler) -> bool:
    # The class itself: one of `FileHandler` is a `StreamHandler`, too.
    streams = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    return type(handler) is logging.StreamHandler and handler.stream in streams
