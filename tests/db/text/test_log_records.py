"""A record of our loggers cannot forge a log line, in any format."""

import io
import logging
from collections.abc import Callable, Iterator

import pytest

HOSTILE = "x\n00:00:00: forged \x1b[2J\u202e"
SHOWN = "x\\n00:00:00: forged \\x1b[2J\\u202e"


class UnsayableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("the session has ended")


@pytest.fixture(params=["db", "worker"])
def logger(request: pytest.FixtureRequest) -> logging.Logger:
    return logging.getLogger(request.param)


@pytest.fixture
def printed(logger: logging.Logger) -> Iterator[Callable[[], str]]:
    """What a handler of the project's own prints, in the project's format."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger.addHandler(handler)
    yield stream.getvalue
    logger.removeHandler(handler)


def test_arguments_are_made_printable(logger: logging.Logger, printed: Callable[[], str]) -> None:
    """Texts and other unprintable arguments are escaped. Numbers and printable arguments stay as they are."""
    logger.error("%s %d %.1f %r %s", HOSTILE, 7, 0.5, b"a\n", ValueError(HOSTILE))
    assert printed() == f"ERROR {SHOWN} 7 0.5 b'a\\n' {SHOWN}\n"


def test_named_arguments_are_made_printable_too(logger: logging.Logger, printed: Callable[[], str]) -> None:
    """A record whose message names its arguments has one mapping of them."""
    logger.error("%(what)s %(number)d", {"what": HOSTILE, "number": 7})
    assert printed() == f"ERROR {SHOWN} 7\n"


def test_message_without_arguments_is_made_printable(logger: logging.Logger, printed: Callable[[], str]) -> None:
    """The message itself is escaped."""
    logger.error(HOSTILE)
    assert printed() == f"ERROR {SHOWN}\n"


def test_error_whose_str_raises_is_logged(logger: logging.Logger, printed: Callable[[], str]) -> None:
    """The code that logs such an error goes on."""
    logger.error("no: %s", UnsayableError(), exc_info=UnsayableError())
    assert printed().startswith("ERROR no: <cannot be printed: RuntimeError>\n")


@pytest.mark.parametrize("where", ["itself", "cause", "note", "member"])
def test_traceback_is_indented_and_escaped(logger: logging.Logger, printed: Callable[[], str], where: str) -> None:
    """A traceback keeps its lines; none of them begins where a log line does, and all else in it is escaped."""
    hostile = ValueError(HOSTILE)
    error: Exception = {"itself": hostile, "member": ExceptionGroup("all", [hostile])}.get(where, ValueError("plain"))
    if where == "cause":
        error.__cause__ = hostile
    if where == "note":
        error.add_note(HOSTILE)
    logger.error("failed", exc_info=error)
    first, *lines = printed().splitlines()
    assert first == "ERROR failed"
    assert all(line.startswith("  ") for line in lines)
    assert any("00:00:00: forged \\x1b[2J\\u202e" in line for line in lines)


def test_plain_traceback_is_left_to_the_formatter(logger: logging.Logger, printed: Callable[[], str]) -> None:
    """A printable traceback is made by the handler's formatter."""
    try:
        int("plain")
    except ValueError:
        logger.exception("failed")
    assert printed().startswith("ERROR failed\nTraceback (most recent call last):\n")
    assert printed().endswith("\nValueError: invalid literal for int() with base 10: 'plain'\n")
