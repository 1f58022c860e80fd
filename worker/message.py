"""The wire: one job, and one result, as arq writes them in Redis, but in JSON.

1. A job is ``{"t": try, "f": task, "a": args, "k": kwargs, "et": enqueue time}``; a result has besides ``s``
   (success), ``r`` (the result, or the error as data), ``st``, ``ft`` (start, finish), ``q`` (queue) and ``id``.
   Times are milliseconds since the epoch. (arq 0.28, ``jobs.py``: ``serialize_job``, ``serialize_result``)
2. An error crosses as data. Built-in exceptions and `CancelledError` come back as themselves, others as `JobFailed`.
3. Pickle is never loaded, unless the caller accepts it: whoever can write to Redis could then run code here.

`serialize` and `deserialize` are for stock arq clients: ``create_pool(settings, job_serializer=serialize,
job_deserializer=deserialize)``.
"""

import asyncio
import builtins
import pickle
import traceback as tracebacks
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import PydanticSerializationError, from_json, to_json

from worker.errors import JobFailed, PayloadError

_PICKLE_MAGIC = b"\x80"


@dataclass(frozen=True, slots=True)
class Message:
    """One job as it was asked for."""

    job_id: str
    task: str
    """The task's name."""
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    enqueued_at: int = 0
    """Milliseconds since the epoch. A job is known by its id and this."""

    @classmethod
    def decode(cls, job_id: str, raw: bytes, *, accept_pickle: bool = False) -> "Message":
        """The job that `raw` holds.

        Raises:
            PayloadError: it is not a job, or it is a pickle and those are not accepted.
        """
        data = _decode(raw, accept_pickle=accept_pickle)
        name, args, kwargs, enqueued_at = data.get("f"), data.get("a"), data.get("k"), data.get("et")
        if not isinstance(name, str) or not isinstance(args, list | tuple) or not isinstance(kwargs, dict):
            raise PayloadError("not a job: it wants f (the task's name), a (a list), k (an object) and et (a time)")
        if not isinstance(enqueued_at, int) or isinstance(enqueued_at, bool):
            raise PayloadError("not a job: et, its enqueue time, is milliseconds since the epoch")
        return cls(job_id, name, tuple(args), kwargs, enqueued_at)


def encode(task: str, kwargs: bytes, enqueued_at: int) -> bytes:
    """A job on the wire; `kwargs` is JSON already, as it comes from the task's validator."""
    return b'{"t":null,"f":%b,"a":[],"k":%b,"et":%d}' % (to_json(task), kwargs, enqueued_at)


def dump(value: Any) -> bytes:
    """A value as JSON: what pydantic knows to write, by the value's own type; bytes as base64.

    Raises:
        TypeError: JSON has no way to say it.
    """
    try:
        return to_json(value, bytes_mode="base64", inf_nan_mode="constants")
    except (PydanticSerializationError, ValueError) as error:
        raise TypeError(str(error)) from None


def serialize(data: dict[str, Any]) -> bytes:
    """A job or a result as bytes: arq's `job_serializer`. Exceptions become data."""
    return to_json(data, bytes_mode="base64", inf_nan_mode="constants", fallback=_error_or_refuse)


def deserialize(raw: bytes) -> dict[str, Any]:
    """A job or a result from bytes: arq's `job_deserializer`. An error comes back as an exception.

    Raises:
        PayloadError: it is not JSON, or not an object.
    """
    return _with_error(_decode(raw, accept_pickle=False))


def deserialize_trusting(raw: bytes) -> dict[str, Any]:
    """`deserialize`, which loads pickles too: for a queue that only trusted producers can write to."""
    return _with_error(_decode(raw, accept_pickle=True))


def error_data(error: BaseException) -> dict[str, Any]:
    """An exception as data: its type, message, arguments where JSON can say them, and traceback."""
    if isinstance(error, JobFailed):
        return {"type": error.type, "message": error.message, "traceback": error.traceback}
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    traceback = "".join(tracebacks.format_exception(error))
    data: dict[str, Any] = {"type": name, "message": _text(error), "traceback": traceback}
    if all(isinstance(arg, str | int | float | None) for arg in error.args):
        data["args"] = list(error.args)
    return data


def error_from(data: Any) -> BaseException:
    """The exception that `data` tells of: a built-in one as itself, any other as `JobFailed`."""
    if isinstance(data, BaseException):  # from a pickle that was accepted
        return data
    if not isinstance(data, dict) or not isinstance(data.get("type"), str):
        return JobFailed("unknown", str(data))
    name, args = data["type"], data.get("args")
    kind = asyncio.CancelledError if name == "asyncio.exceptions.CancelledError" else getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception | asyncio.CancelledError) and isinstance(args, list):
        try:
            return kind(*args)
        except TypeError:  # one that wants more than what JSON could say, such as UnicodeDecodeError
            pass
    return JobFailed(name, str(data.get("message", "")), str(data.get("traceback", "")))


def _decode(raw: bytes, *, accept_pickle: bool) -> dict[str, Any]:
    try:
        data = pickle.loads(raw) if accept_pickle and raw[:1] == _PICKLE_MAGIC else from_json(raw)  # noqa: S301 - asked for
    except Exception as error:  # noqa: BLE001 - a pickle may raise anything
        raise PayloadError(_why_undecodable(raw, error)) from None
    if not isinstance(data, dict):
        raise PayloadError(f"not a job: {type(data).__name__} where an object is wanted")
    return data


def _why_undecodable(raw: bytes, error: Exception) -> str:
    if raw[:1] == _PICKLE_MAGIC:
        return (
            "a pickle, which is not loaded: let the producer use worker.message.serialize, or set "
            "WORKER_ACCEPT_PICKLE=true where every producer is trusted"
        )
    return f"not JSON: {error}"


def _with_error(data: dict[str, Any]) -> dict[str, Any]:
    if data.get("s") is False and not isinstance(data.get("r"), str):
        data["r"] = error_from(data.get("r"))
    return data


def _error_or_refuse(value: Any) -> Any:
    if isinstance(value, BaseException):
        return error_data(value)
    raise TypeError(f"JSON cannot say {type(value).__name__}")


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - an exception's own __str__ may be broken
        return f"<{type(error).__name__} that cannot be printed>"
