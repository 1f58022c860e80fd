"""redis-py's errors, under redis-py's names, for modules outside this package."""

from redis.exceptions import AuthenticationError, ClusterDownError, RedisError, ResponseError

__all__ = ["AuthenticationError", "ClusterDownError", "RedisError", "ResponseError"]
