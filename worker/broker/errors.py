"""The errors of Redis and of the way to it: redis-py's own, under the names that it gives them."""

from redis.exceptions import AuthenticationError, ClusterDownError, RedisError, ResponseError

__all__ = ["AuthenticationError", "ClusterDownError", "RedisError", "ResponseError"]
