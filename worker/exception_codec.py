"""An exception as data, so that it can cross the wire: whoever asks for the result need not have its class.

1. Built-in exceptions and `CancelledError` come back as themselves, groups with their members; others as `JobFailed`.
2. Those that would end the one who asks (`SystemExit`, `KeyboardInterrupt`) come back as `JobFailed` too.
3. The data is bounded, and always something that JSON can say, whatever the exception holds.
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
    """An exception as data that JSON can always say: its type, message and traceback, all of bounded length.

    A built-in one takes its arguments along, and a group its members, so that they come back as themselves.
    """
    if isinstance(error, JobFailed):
        texts = {"type": error.type, "message": error.message, "traceback": error.traceback}
        return {name: _encodable(text) for name, text in texts.items()}
    traceback = _shortened(_printable(lambda: "".join(tracebacks.format_exception(error))), _LONGEST_TRACEBACK)
    return _described(error) | {"traceback": traceback}


def error_from(data: Any) -> BaseException:
    """The exception that `data` tells of: a built-in one as itself, with the worker's traceback as a note; any other as
    `JobFailed`.
    """
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
    """What an exception says, of bounded length, also where its ``__str__`` raises: it may touch an ended session."""
    return _shortened(_printable(lambda: str(error)), _LONGEST_MESSAGE)


def _described(error: BaseException, depth: int = 0) -> dict[str, Any]:
    """Its type and message, and what it takes to build it again."""
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
    # By `__reduce__`, as an OSError's file is not among its `args`.
    return [_argument(argument) for argument in error.__reduce__()[1]]


def _argument(value: Any, depth: int = 0) -> Any:
    """One argument of an exception, or its repr where JSON cannot say it."""
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
        case list():  # exceptions are given tuples: SyntaxError, KeyError
            return tuple(_restored(item) for item in argument)
        case _:
            return argument


def _built_in(data: dict[str, Any]) -> BaseException | None:
    """The built-in exception that `data` tells of; None where it is none, or cannot be built again."""
    name, arguments = data["type"], data.get("args")
    kind = asyncio.CancelledError if name == _CANCELLED else getattr(builtins, name, None)
    if not isinstance(kind, type) or not issubclass(kind, _REBUILT) or not isinstance(arguments, list):
        return None  # SystemExit and the like would end the one who asks
    try:
        if issubclass(kind, BaseExceptionGroup):
            return kind(str(arguments[0]), [error_from(member) for member in data["exceptions"]])
        return kind(*map(_restored, arguments))
    except Exception:  # noqa: BLE001 - whoever wrote it gave other arguments than it takes
        return None


def _is_short(rebuilt: dict[str, Any]) -> bool:
    return len(to_json(rebuilt, inf_nan_mode="constants")) <= _LONGEST_TRACEBACK


def _printable(text: Callable[[], str]) -> str:
    """What `text()` returns, as UTF-8 can write it."""
    try:
        return _encodable(text())
    except Exception as error:  # noqa: BLE001 - it may raise anything
        return f"<cannot be printed: {type(error).__name__}>"


def _encodable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def _shortened(text: str, longest: int) -> str:
    """`text` without its middle where it is too long: where an error comes from, and what it says, are at the ends."""
    if len(text) <= longest:
        return text
    head, tail = text[: longest // 4], text[-longest * 3 // 4 :]
    return f"{head}\n... {len(text) - longest} characters left out ...\n{tail}"
