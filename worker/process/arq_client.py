"""``CheckedArqRedis``: arq's client, which refuses an argument that JSON would change."""

from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any

from arq.connections import ArqRedis
from arq.jobs import Job
from pydantic_core import from_json

from worker.client.json_round_trip import require_same
from worker.context import came_as_pickle
from worker.errors import PayloadNotJSONError
from worker.message import serialize
from worker.process.arq_codec import serialize_in_kind
from worker.task import Task


class CheckedArqRedis(ArqRedis):
    """arq's client for tasks and hooks: ``ctx["redis"]``."""

    tasks: Mapping[str, Task[Any, Any]] = MappingProxyType({})
    """The worker's tasks by name. Their annotations restore what JSON does not have."""

    async def enqueue_job(self, function: str, *args: Any, **kwargs: Any) -> Job | None:
        """Enqueue a job, as arq does.

        Raises:
            PayloadNotJSONError: JSON would change an argument. Nothing is queued.
        """
        if self.job_serializer is not serialize_in_kind or not came_as_pickle():
            arguments = {name: value for name, value in kwargs.items() if name not in _OPTIONS}
            _require_unchanged(function, self.tasks.get(function), args, arguments)
        return await super().enqueue_job(function, *args, **kwargs)


_OPTIONS = frozenset({"_job_id", "_queue_name", "_defer_until", "_defer_by", "_expires", "_job_try"})


def _require_unchanged(
    function: str, task: Task[Any, Any] | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    if task is None:
        named = {**{f"{function}, argument {place}": value for place, value in enumerate(args, 1)}, **kwargs}
        for name, value in named.items():
            require_same(name, value, _received(value))
        return
    try:
        task.signature.validate(args, kwargs)
    except PayloadNotJSONError:
        raise
    except Exception:  # noqa: BLE001, S110 - the job fails with it, as arq's would; or a worker has newer code
        pass


def _received(value: Any) -> Any:
    """What the worker gets. The value itself if it cannot be encoded, as arq then raises."""
    with suppress(Exception):
        return from_json(serialize({"value": value}))["value"]
    return value
