"""Pickled messages of stock arq clients: what can be told of one without loading it, and results for their producers.

Nothing here loads a message. `pickletools` only reads the operations of a pickle, and runs none of them.
"""

import asyncio
import contextlib
import pickle
import pickletools
import sys
from collections.abc import Mapping
from itertools import islice
from typing import Any, NamedTuple

from worker import foreign_codec
from worker.exception_codec import message_of
from worker.foreign_codec import PICKLE_MAGIC
from worker.message import LATEST

_HEAD = 40  # operations, more than arq's dict needs up to the task's name
_TAIL = 64  # bytes, more than the last key and its value need
_ET = (b"\x8c\x02et", b"X\x02\x00\x00\x00et")  # the key "et" in protocols 4 and 5, and in 2 and 3
_STORES = frozenset({"MEMOIZE", "BINPUT", "LONG_BINPUT"})
_SILENT = _STORES | {"PROTO", "FRAME", "EMPTY_DICT", "MARK"}
_FETCHES = frozenset({"BINGET", "LONG_BINGET"})
_OWN = ("worker", "db", "pydantic_core")  # packages that a stock producer need not have


class Glimpse(NamedTuple):
    """What a pickled job says of itself. None where that is not found."""

    task: str | None
    enqueued_at: int | None
    """Milliseconds since the epoch."""


def glimpse(raw: bytes) -> Glimpse:
    """Read a pickled job's task and enqueue time without loading the pickle.

    arq pickles ``{"t": try, "f": task, "a": args, "k": kwargs, "et": enqueue time}``, in this order. (arq 0.28,
    ``jobs.py``: ``serialize_job``)
    """
    if raw[:1] != PICKLE_MAGIC:
        return Glimpse(None, None)
    try:
        return Glimpse(_task(raw), _enqueued_at(raw))
    except Exception:  # noqa: BLE001 - `pickletools` raises many errors for what is not a pickle
        return Glimpse(None, None)


def dump_result(data: Mapping[str, Any]) -> bytes:
    """Encode a result as arq does. An exception that its reader could not load becomes a `RuntimeError`.

    In a project's own format that cannot express exceptions, an exception is its name and its text.
    """
    value = data["r"]
    if not isinstance(value, BaseException):
        return foreign_codec.dump({**data})
    if foreign_codec.are_given():
        with contextlib.suppress(Exception):
            return foreign_codec.dump({**data, "r": value})
        return foreign_codec.dump({**data, "r": _described(value)})
    return pickle.dumps({**data, "r": _loadable(value)})


def _task(raw: bytes) -> str | None:
    memo: dict[Any, Any] = {}
    values: list[Any] = []
    for opcode, value, _ in islice(pickletools.genops(raw), _HEAD):
        if opcode.name in _STORES:
            memo[len(memo)] = values[-1] if values else None  # first the dict, then what was pushed last
        elif opcode.name not in _SILENT:
            values.append(memo[value] if opcode.name in _FETCHES else value)
        if len(values) == 4:  # t, its value, f, its value
            break
    return values[3] if values[0] == "t" and values[2] == "f" and isinstance(values[3], str) else None


def _enqueued_at(raw: bytes) -> int | None:
    tail = raw[-_TAIL:]
    tail = tail[max(map(tail.rfind, _ET)) :]
    steps = [(opcode.name, value) for opcode, value, _ in pickletools.genops(tail) if opcode.name not in _STORES]
    match steps:
        case [(_, "et"), (_, int(time)), ("SETITEMS", _), ("STOP", _)] if 0 <= time <= LATEST:
            return time
        case _:
            return None


def _loadable(error: BaseException) -> BaseException:
    kind = type(error)
    if kind.__module__.partition(".")[0] in _OWN:
        return _job_execution_failed(_described(error))
    is_rebuilt = isinstance(error, Exception | asyncio.CancelledError)  # not SystemExit: it would end the reader
    if is_rebuilt:
        try:
            copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - this process has just written it
        except Exception:  # noqa: BLE001 - a class may raise anything where it is copied
            copy = None
        if type(copy) is kind:
            return error
    return RuntimeError(_described(error))


def _job_execution_failed(text: str) -> RuntimeError:
    """arq's own error for jobs that it ends itself, which its producers have. Without arq there is no such producer."""
    kind = getattr(sys.modules.get("arq.worker"), "JobExecutionFailed", RuntimeError)
    error: RuntimeError = kind(text)
    return error


def _described(error: BaseException) -> str:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{name}: {message_of(error)}"
