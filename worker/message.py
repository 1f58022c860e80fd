"""The wire format: jobs and results as arq stores them in Redis, but in JSON.

1. A job is ``{"t": try, "f": task, "a": args, "k": kwargs, "et": enqueue time}``. A result also has ``s`` (success),
   ``r`` (the result, or the error as data), ``st``, ``ft`` (start, finish), ``q`` (queue) and ``id``. Times are
   milliseconds since the epoch. (arq 0.28, ``jobs.py``: ``serialize_job``, ``serialize_result``)
2. A job with a row in the ledger also has ``"ledger": true``, which arq ignores. The result of an aborted job begins
   with ``"aborted"`` and the job's enqueue time, because such a result does not reserve the id.
3. The scripts in Redis read the beginning of a result and the enqueue time at the end of a job without parsing the
   rest. Nothing else may be written in these places. They tell a job of Tandem's by its beginning, ``{"f":``; arq's
   jobs begin with ``t``.
   A job with an origin (`parent`, `traceparent`) has it after its task's name. A job without one has no byte of it.
4. An error is written as data. Built-in exceptions and `CancelledError` are read as themselves, others as `JobFailed`.
5. Pickle is loaded only if the caller accepts it. A person who can write to Redis could then run code in this process.

`serialize` and `deserialize` are for stock arq clients: ``create_pool(settings, job_serializer=serialize,
job_deserializer=deserialize)``.
"""

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeGuard

from pydantic_core import from_json, to_json

from worker import foreign_codec
from worker.errors import PayloadError
from worker.exception_codec import error_data, error_from
from worker.foreign_codec import OWN_HEAD, PICKLE_MAGIC

LATEST = 253_402_300_799_999
"""The last millisecond that a datetime can express."""
_SEQUENCES = (list, tuple)
_DEEPEST_JSON = 200  # levels that the parser of pydantic-core reads
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class Message(NamedTuple):
    """One job as its producer enqueued it."""

    job_id: str
    task: str
    """The task's name."""
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = MappingProxyType({})
    enqueued_at: int = 0
    """Milliseconds since the epoch. The id and this time identify a job."""
    in_ledger: bool = False
    """Whether the job was enqueued in a transaction, and so has a pending row."""
    is_pickled: bool = False
    """Whether the job came as a pickle, or in the project's own format. Its producer can only read a result that is in
    it, too: see `worker.foreign_codec`."""
    first_try: int = 0
    """The number of its first try, if its producer gave one: arq's ``_job_try``."""
    parent: str | None = None
    """The id of the job that enqueued it."""
    traceparent: str | None = None
    """The trace and span that it was enqueued in, as W3C Trace Context writes them."""

    @classmethod
    def decode(cls, job_id: str, raw: bytes, *, accept_pickle: bool = False) -> "Message":
        """Decode a job.

        Raises:
            PayloadError: `raw` is not a job, or it is a pickle and pickles are not accepted.
        """
        data, is_foreign = _decode(raw, accept_pickle=accept_pickle)
        data = _job(data, is_foreign=is_foreign)
        message = cls(
            job_id,
            data["f"],
            tuple(data["a"]),
            data["k"],
            data["et"],
            data.get("ledger") is True,
            is_foreign,
            data.get("t") or 0,
        )
        if "parent" in data or "traceparent" in data:
            parent, traceparent = _parent(data.get("parent")), _traceparent(data.get("traceparent"))
            return message._replace(parent=parent, traceparent=traceparent)
        return message


class Envelope:
    """The encoded parts before and after the arguments, which jobs of one call have in common."""

    def __init__(
        self,
        task: str,
        enqueued_at: int,
        *,
        in_ledger: bool = False,
        parent: str | None = None,
        traceparent: str | None = None,
    ) -> None:
        origin = b"" if parent is None else b',"parent":%b' % to_json(parent)
        if traceparent is not None:
            origin += b',"traceparent":%b' % to_json(traceparent)
        self._head = OWN_HEAD + b'%b%b,"t":null,"a":[],"k":' % (to_json(task), origin)
        self._tail = b',"et":%d%b}' % (enqueued_at, b',"ledger":true' if in_ledger else b"")

    def around(self, kwargs: bytes) -> bytes:
        """Encode a job. `kwargs` is already JSON, from the task's validator."""
        return self._head + kwargs + self._tail


def encode(task: str, kwargs: bytes, enqueued_at: int, *, in_ledger: bool = False) -> bytes:
    """Encode one job: see `Envelope`."""
    return Envelope(task, enqueued_at, in_ledger=in_ledger).around(kwargs)


def with_row(raw: bytes, *, accept_pickle: bool = False, enqueued_at: int | None = None) -> bytes:
    """Add ``"ledger": true`` to an encoded job. Nothing else changes.

    Args:
        enqueued_at: the enqueue time of its row. A pickle gets this time, as its own may not have been found when the
            row was written.

    Raises:
        PayloadError: `raw` is not a job, or it is a pickle and pickles are not accepted.
    """
    data, is_foreign = _decode(raw, accept_pickle=accept_pickle)
    data = _job(data, is_foreign=is_foreign)
    if is_foreign:
        return foreign_codec.dump({**data, "et": data["et"] if enqueued_at is None else enqueued_at, "ledger": True})
    if data.get("ledger") is True:
        return raw
    # Appended, as decoding and encoding might change a number. Of two members of one name the last one counts.
    return raw.rstrip().removesuffix(b"}") + b',"ledger":true}'


def dump(value: Any) -> bytes:
    """Encode a value as JSON, as pydantic does by the value's own type; bytes as base64.

    Raises:
        TypeError: JSON cannot express the value, or the parser could not read it back.
    """
    if value is None:
        return b"null"
    if isinstance(value, Iterator):
        raise TypeError(f"JSON cannot express this {type(value).__name__}: return a list")
    try:
        raw = to_json(value, round_trip=True, bytes_mode="base64", inf_nan_mode="constants")
        if len(raw) > _DEEPEST_JSON:
            require_readable(raw)
    except ValueError as error:
        raise TypeError(f"JSON cannot express this {type(value).__name__}: {error}") from None
    return raw


def require_readable(raw: bytes) -> None:
    """Raise `ValueError` for JSON that pydantic can write but not read: nested too deep, or with too long a number."""
    from_json(b"[[%b]]" % raw, cache_strings="none")  # as deep as the value will be in a job or a result


def serialize(data: dict[str, Any]) -> bytes:
    """Encode a job or a result: arq's `job_serializer`. Exceptions become data.

    ::

        settings = {"job_serializer": serialize, "job_deserializer": deserialize}
        pool = await arq.create_pool(redis_settings, **settings)  # a producer of stock arq
    """
    return to_json(data, bytes_mode="base64", inf_nan_mode="constants", fallback=_error_or_refuse)


def deserialize(raw: bytes) -> dict[str, Any]:
    """Decode a job or a result: arq's `job_deserializer`. An error becomes an exception again.

    ::

        settings = {"job_serializer": serialize, "job_deserializer": deserialize}
        pool = await arq.create_pool(redis_settings, **settings)  # a producer of stock arq

    Raises:
        PayloadError: `raw` is neither a job nor a result, or not JSON.
    """
    return _job_or_result(_decode(raw, accept_pickle=False)[0])


def deserialize_trusting(raw: bytes) -> dict[str, Any]:
    """Decode like `deserialize`, and load pickles too, for a queue that only trusted producers can write to."""
    return _job_or_result(_decode(raw, accept_pickle=True)[0])


def _decode(raw: bytes, *, accept_pickle: bool) -> tuple[dict[str, Any], bool]:
    """Decode a job or a result. Say whether it was in the format of producers that have not moved."""
    try:
        data = None if raw.startswith(OWN_HEAD) else foreign_codec.load(raw, accept_pickle=accept_pickle)
        is_foreign = data is not None
        if data is None:
            data = from_json(raw)
    except Exception as error:  # noqa: BLE001 - a pickle may raise anything
        raise PayloadError(_why_undecodable(raw, error, accept_pickle=accept_pickle)) from None
    if not isinstance(data, dict):
        raise PayloadError(f"not a job: expected an object, got {type(data).__name__}")
    return data, is_foreign


def _why_undecodable(raw: bytes, error: Exception, *, accept_pickle: bool) -> str:
    if raw[:1] == PICKLE_MAGIC and accept_pickle:
        return f"a pickle that cannot be loaded: {type(error).__name__}: {error}"
    if raw[:1] == PICKLE_MAGIC:
        return (
            "a pickle, which is not loaded: use worker.message.serialize in the producer, or set "
            "WORKER_ACCEPT_PICKLE=true if every producer is trusted"
        )
    return f"not JSON: {error}"


def _job_or_result(data: dict[str, Any]) -> dict[str, Any]:
    if "s" not in data:
        return _job(data)
    if data["s"] is False and not isinstance(data.get("r"), str):
        data["r"] = error_from(data.get("r"))
    return data


def _job(data: dict[str, Any], *, is_foreign: bool = True) -> dict[str, Any]:
    """Check that `data` is a job, and return it. The keys of an object that came as JSON are texts.

    Raises:
        PayloadError: `data` is not a job.
    """
    name, args, kwargs, enqueued_at = data.get("f"), data.get("a"), data.get("k"), data.get("et")
    is_object = _is_object(kwargs) if is_foreign else isinstance(kwargs, dict)
    if not (isinstance(name, str) and isinstance(args, _SEQUENCES) and is_object):
        raise PayloadError("not a job: it needs f (the task's name), a (a list), k (an object) and et (a time)")
    if not _is_whole(enqueued_at) or not 0 <= enqueued_at <= LATEST:
        raise PayloadError("not a job: et, its enqueue time, must be milliseconds since the epoch")
    if data.get("t") is not None and not _is_whole(data["t"]):
        raise PayloadError("not a job: t, its first try, must be a whole number or null")
    return data


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and {*map(type, value)} <= {str}


def _parent(value: Any) -> str | None:
    """The id of a parent, or None for one that could not be stored, or would forge a line in a log."""
    return value if isinstance(value, str) and value.isprintable() else None


def _traceparent(value: Any) -> str | None:
    return value if isinstance(value, str) and _TRACEPARENT.fullmatch(value) else None


def _is_whole(value: Any) -> TypeGuard[int]:
    return type(value) is int  # not isinstance, as a bool is an int


def _error_or_refuse(value: Any) -> Any:
    if isinstance(value, BaseException):
        return error_data(value)
    raise TypeError(f"JSON cannot express {type(value).__name__}")
