"""Encode an exception as data and decode it. The process that reads a result does not need the exception's class.

1. Built-in exceptions, `CancelledError` and groups with their members are decoded as themselves, others as `JobFailed`.
2. `SystemExit` and `KeyboardInterrupt`, which would end the reading process, are also decoded as `JobFailed`.
3. The data has a bounded size, and JSON can express it, whatever the exception holds.
"""

import asyncio
import base64
import builtins
import traceback as tracebacks
from collections.abc import Callable
from typing import Any

from pydantic_core import to_json

from worker.errors import JobFailed

_CANCELLED = "asyncio.exceptions.CancelledError"
_REBUILT = (Exception, asyncio.CancelledError, BaseExceptionGroup)
_LONGEST_MESSAGE, _LONGEST_TRACEBACK = 8_000, 32_000  # characters
_DEEPEST_ARGUMENT, _DEEPEST_GROUP = 4, 4


def error_data(error: BaseException) -> dict[str, Any]:
    """Encode an exception for JSON: its type, message and traceback, all of bounded length.

    For a built-in exception the data includes the arguments, for a group the members, so that `error_from` can rebuild
    it.
    """
    if isinstance(error, JobFailed):
        texts = {"type": error.type, "message": error.message, "traceback": error.traceback}
        return {name: _encodable(text) for name, text in texts.items()}
    traceback = _shortened(_printable(lambda: "".join(tracebacks.format_exception(error))), _LONGEST_TRACEBACK)
    return _described(error) | {"traceback": traceback}


def error_from(data: Any) -> BaseException:
    """Decode an exception: a built-in one as itself, with the worker's traceback as a note; others as `JobFailed`."""
    if isinstance(data, BaseException):  # from a pickle that was accepted
        return data
    if not isinstance(data, dict) or not isinstance(data.get("type"), str):
        return JobFailed("unknown", str(data))
    traceback = str(data.get("traceback", ""))
    error = _built_in(data)
    if error is None:
        return JobFailed(data["type"], str(data.get("message", "")), traceback)
    if traceback:
        error.add_note(f"In the worker:\n{traceback.rstrip()}")
    return error


def message_of(error: BaseException) -> str:
    """The text of an exception, of bounded length.

    It never raises, even if the exception's ``__str__`` does, for example because it uses an ended session.
    """
    return _shortened(_printable(lambda: str(error)), _LONGEST_MESSAGE)


def _described(error: BaseException, depth: int = 0) -> dict[str, Any]:
    """The exception's type and message, and the data to rebuild it."""
    kind = type(error)
    message = message_of(error)
    if kind.__module__ != "builtins":
        if kind is asyncio.CancelledError:
            return {"type": _CANCELLED, "message": message, "args": _arguments(error)}
        return {"type": f"{kind.__module__}.{kind.__qualname__}", "message": message}
    described: dict[str, Any] = {"type": kind.__qualname__, "message": message}
    if not isinstance(error, BaseExceptionGroup):
        rebuilt = {"args": _arguments(error)}
    elif depth < _DEEPEST_GROUP:
        members = [_described(member, depth + 1) for member in error.exceptions]
        rebuilt = {"args": [_encodable(error.message)], "exceptions": members}
    else:
        return described
    return described | rebuilt if _is_short(rebuilt) else described


def _arguments(error: BaseException) -> list[Any]:
    # From `__reduce__`, because the `args` of an OSError do not include its file.
    return [_argument(argument) for argument in error.__reduce__()[1]]


def _argument(value: Any, depth: int = 0) -> Any:
    """One argument of an exception, or its repr if JSON cannot express it."""
    match value:
        case None | bool() | float():
            return value
        case int() if value.bit_length() < _LONGEST_MESSAGE:
            return int(value)
        case str():
            return _encodable(value)
        case bytes():
            return {"base64": base64.b64encode(value).decode()}
        case list() | tuple() if depth < _DEEPEST_ARGUMENT:
            return [_argument(item, depth + 1) for item in value]
        case _:
            return _printable(lambda: repr(value))


def _restored(argument: Any) -> Any:
    match argument:
        case {"base64": str(encoded)}:
            return base64.b64decode(encoded)
        case list():  # the arguments of SyntaxError and KeyError are tuples
            return tuple(_restored(item) for item in argument)
        case _:
            return argument


def _built_in(data: dict[str, Any]) -> BaseException | None:
    """Rebuild a built-in exception; None if it is another one, or cannot be rebuilt."""
    name, arguments = data["type"], data.get("args")
    kind = asyncio.CancelledError if name == _CANCELLED else getattr(builtins, name, None)
    if not isinstance(kind, type) or not issubclass(kind, _REBUILT) or not isinstance(arguments, list):
        return None  # SystemExit and KeyboardInterrupt would end the reading process
    try:
        if issubclass(kind, BaseExceptionGroup):
            return kind(str(arguments[0]), [error_from(member) for member in data["exceptions"]])
        return kind(*map(_restored, arguments))
    except Exception:  # noqa: BLE001 - other software may have written arguments that the class does not take
        return None


def _is_short(rebuilt: dict[str, Any]) -> bool:
    return len(to_json(rebuilt, inf_nan_mode="constants")) <= _LONGEST_TRACEBACK


def _printable(text: Callable[[], str]) -> str:
    """The result of `text()` as valid UTF-8, or a placeholder if it raises."""
    try:
        return _encodable(text())
    except Exception as error:  # noqa: BLE001 - the project's __str__ may raise anything
        return f"<cannot be printed: {type(error).__name__}>"


def _encodable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def _shortened(text: str, longest: int) -> str:
    """Cut the middle out of a text that is too long. The first and last lines of a traceback say the most."""
    if len(text) <= longest:
        return text
    head, tail = text[: longest // 4], text[-longest * 3 // 4 :]
    return f"{head}\n... {len(text) - longest} characters left out ...\n{tail}"
