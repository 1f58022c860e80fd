"""redis-py's errors, under redis-py's names, for modules outside this package.

A module that ``import worker`` loads writes ``errors.RedisError`` in its `except` clause: the name is looked up only
when something was raised, so that declaring tasks does not import redis-py.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redis.exceptions import AuthenticationError, ClusterDownError, RedisError, ResponseError

__all__ = ["AuthenticationError", "ClusterDownError", "RedisError", "ResponseError"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from redis import exceptions  # noqa: PLC0415 - redis-py, which only a process that talks to Redis needs

    return getattr(exceptions, name)
