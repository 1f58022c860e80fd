"""What is waited for before Redis is used, and what is not."""

import pytest
import redis

from worker.process.redis_wait import RedisWait
from worker.process.runtime import StartupError


@pytest.mark.parametrize(
    "error",
    [
        redis.ConnectionError("refused"),
        redis.TimeoutError("too slow"),
        redis.BusyLoadingError("loading"),
        redis.exceptions.ClusterDownError("CLUSTERDOWN Hash slot not served"),
        ConnectionResetError("gone"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_may_change(error: redis.RedisError | OSError) -> None:
    """It is looked at again, until the time is up; then one line names the variable and the error."""
    assert RedisWait(60).after(error) > 0
    with pytest.raises(StartupError, match=r"REDIS_URL: no answer within -1 s \(.*\); is the server up\?"):
        RedisWait(-1).after(error)


@pytest.mark.parametrize(
    "error",
    [
        redis.AuthenticationError("wrong password"),
        redis.exceptions.NoPermissionError("no permissions to run the 'info' command"),
        redis.ResponseError("invalid DB index"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_will_not(error: redis.RedisError) -> None:
    """It is told at once."""
    with pytest.raises(StartupError, match=f"REDIS_URL: the server refuses: {error}"):
        RedisWait(60).after(error)
