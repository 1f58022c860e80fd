"""The format of producers that have not moved: arq's default, pickle, or a project's own serializers of arq.

A job in this format is answered in it. Tandem's own jobs are JSON, whatever it is.
"""

import pickle
from collections.abc import Callable
from typing import Any

from worker.errors import ConfigError

PICKLE_MAGIC = b"\x80"
"""The first byte of a pickle of protocol 2 or later."""
OWN_HEAD = b'{"f":'
"""The beginning of Tandem's own jobs. arq's dict begins with ``t``."""

Serializer = Callable[[dict[str, Any]], bytes]
Deserializer = Callable[[bytes], dict[str, Any]]

_given: tuple[Serializer, Deserializer] | None = None


def use_serializers(serializer: Serializer, deserializer: Deserializer) -> None:
    """Let this process read and answer jobs that producers write with these serializers.

    Raises:
        ConfigError: others are in use.
    """
    global _given  # noqa: PLW0603 - one format per process, as a job does not say which one it has
    if _given not in (None, (serializer, deserializer)):
        raise ConfigError("two Settings classes of one process have different serializers: start two processes")
    _given = (serializer, deserializer)


def are_given() -> bool:
    """Whether the project has given serializers of its own."""
    return _given is not None


def dump(data: dict[str, Any]) -> bytes:
    """Encode a job or a result in the format."""
    return pickle.dumps(data) if _given is None else _given[0](data)


def load(raw: bytes, *, accept_pickle: bool) -> dict[str, Any] | None:
    """Decode a job or a result. None if it is not in this format. A pickle that cannot be loaded raises.

    Do not call it with a job of Tandem's own, which begins with `OWN_HEAD`.
    """
    if _given is None:
        return pickle.loads(raw) if accept_pickle and raw[:1] == PICKLE_MAGIC else None  # noqa: S301 - asked for
    try:
        data: Any = _given[1](raw)
    except Exception:  # noqa: BLE001 - the project's own code; what is neither its format nor JSON is reported as that
        return None
    return data if isinstance(data, dict) else None
