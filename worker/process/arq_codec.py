"""The codec of arq's client in a worker, ``ctx["redis"]``.

While a fleet moves from arq, a stock worker may take a job that a task enqueues here, and it only reads pickles, or the
project's own format. So a job that a pickled job or a hook enqueues is a pickle. All others are JSON, so pickles end
once no producer writes them.
"""

from typing import Any

from arq.connections import ArqRedis

from worker import foreign_codec
from worker.client.origin import current_origin
from worker.config import Config
from worker.context import came_as_pickle
from worker.message import deserialize, deserialize_trusting, serialize


def use_codec(client: ArqRedis, config: Config) -> None:
    """Set the client's serializers: with ``WORKER_ACCEPT_PICKLE`` those for both formats."""
    reads_both = config.accept_pickle or foreign_codec.are_given()
    client.job_serializer = serialize_in_kind if reads_both else serialize_with_origin
    client.job_deserializer = deserialize_trusting if reads_both else deserialize


def serialize_in_kind(data: dict[str, Any]) -> bytes:
    """Encode a job in the format in which the job came that enqueues it. Outside of a job, as a pickle."""
    return foreign_codec.dump(_with_origin(data)) if came_as_pickle() else serialize_with_origin(data)


def serialize_with_origin(data: dict[str, Any]) -> bytes:
    """Encode a job with its origin: the job that enqueues it."""
    return serialize(_with_origin(data))


def _with_origin(data: dict[str, Any]) -> dict[str, Any]:
    origin = {name: value for name, value in current_origin()._asdict().items() if value is not None}
    if not origin or "et" not in data:
        return data
    # The enqueue time stays the last: see worker/message.py.
    return {**{name: value for name, value in data.items() if name != "et"}, **origin, "et": data["et"]}
