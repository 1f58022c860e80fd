"""The codec of arq's client in a worker, ``ctx["redis"]``.

While a fleet moves from arq, a stock worker may take a job that a task enqueues here, and it only reads pickles. So a
job that a pickled job or a hook enqueues is a pickle. All others are JSON, so pickles end once no producer writes them.
"""

import pickle
from typing import Any

from arq.connections import ArqRedis

from worker.config import Config
from worker.context import came_as_pickle
from worker.message import deserialize, deserialize_trusting, serialize


def use_codec(client: ArqRedis, config: Config) -> None:
    """Set the client's serializers: with ``WORKER_ACCEPT_PICKLE`` those for both formats."""
    client.job_serializer = serialize_in_kind if config.accept_pickle else serialize
    client.job_deserializer = deserialize_trusting if config.accept_pickle else deserialize


def serialize_in_kind(data: dict[str, Any]) -> bytes:
    """Encode a job in the format in which the job came that enqueues it. Outside of a job, as a pickle."""
    return pickle.dumps(data) if came_as_pickle() else serialize(data)
