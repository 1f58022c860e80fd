"""When a start waits for a server, and when it does not."""

import logging
import time
from collections.abc import Iterable

import pytest
import redis
from sqlalchemy.exc import DBAPIError

from db import DatabaseUnreachableError, DatabaseURLError
from worker.process import server_wait
from worker.process.errors import StartupError
from worker.process.server_wait import ServerWait, await_server, reason_of

DATABASE, REDIS = "DATABASE_URL", "REDIS_URL"
RESET = ConnectionResetError("gone")


def of_the_database(sqlstate: str, message: str) -> DBAPIError:
    """An error that the server sent, as SQLAlchemy raises it."""
    error = Exception(message)
    error.sqlstate = sqlstate  # type: ignore[attr-defined]  # as drivers do
    return DBAPIError("SELECT 1", None, error)


def name(value: object) -> str:
    return value if isinstance(value, str) else type(value).__name__


@pytest.mark.parametrize(
    ("variable", "error"),
    [
        (REDIS, redis.ConnectionError("refused")),
        (REDIS, redis.TimeoutError("too slow")),
        (REDIS, redis.BusyLoadingError("loading")),
        (REDIS, redis.exceptions.ClusterDownError("CLUSTERDOWN Hash slot not served")),
        (REDIS, RESET),
        (DATABASE, RESET),
        (DATABASE, TimeoutError("too slow")),
        (DATABASE, DatabaseUnreachableError("database", "away")),
        (DATABASE, of_the_database("57P03", "the database system is starting up")),
        (DATABASE, of_the_database("53300", "too many clients already")),
    ],
    ids=name,
)
def test_a_server_that_is_away(variable: str, error: Exception) -> None:
    """It is asked again, until the time is up; then one line names the variable and the error."""
    assert ServerWait(variable, 60).after(error) > 0
    with pytest.raises(StartupError) as info:
        ServerWait(variable, -1).after(error)
    assert str(info.value) == f"{variable}: no answer within -1 s ({reason_of(error)}); is the server up?"


@pytest.mark.parametrize(
    ("variable", "error"),
    [
        (REDIS, redis.AuthenticationError("wrong password")),
        (REDIS, redis.exceptions.NoPermissionError("no permissions to run the 'info' command")),
        (REDIS, redis.ResponseError("invalid DB index")),
        (DATABASE, of_the_database("28P01", "password authentication failed")),
        (DATABASE, of_the_database("3D000", 'database "nowhere" does not exist')),
        (DATABASE, ValueError("of the driver's")),
    ],
    ids=name,
)
def test_a_server_that_refuses(variable: str, error: Exception) -> None:
    """It is asked once, and one line says what it says."""
    with pytest.raises(StartupError) as info:
        ServerWait(variable, 60).after(error)
    assert str(info.value) == f"{variable}: the server refuses: {reason_of(error)}"


def test_an_url_that_cannot_be_used() -> None:
    """No server was asked, so none refuses."""
    with pytest.raises(StartupError) as info:
        ServerWait(DATABASE, 60).after(DatabaseURLError("it names no driver"))
    assert str(info.value) == "DATABASE_URL: it names no driver"


def test_each_reason_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """As long as it stays the same, and again where another one came between."""
    caplog.set_level(logging.INFO, "worker")
    wait = ServerWait(REDIS, 60)
    for reason in ("refused", "refused", "loading", "refused"):
        wait.after(redis.ConnectionError(reason))
    assert caplog.messages == [f"waiting for REDIS_URL: {reason}" for reason in ("refused", "loading", "refused")]


def test_the_last_try_is_made_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A try has what is left of the time, and a moment at least. It is given up when the time is over, not before."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    wait = ServerWait(REDIS, 10)
    now += 9.5
    assert wait.left == 0.5
    now += wait.after(RESET)
    assert wait.left == pytest.approx(0.3)
    now += wait.after(RESET)
    now += (pause := wait.after(RESET))
    assert pause == pytest.approx(0.1)
    assert wait.left == 0.1
    with pytest.raises(StartupError, match="no answer within 10 s"):
        wait.after(RESET)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (of_the_database("57P03", "starting up\nDETAIL: soon"), "starting up"),
        (OSError("refused"), "refused"),
        (TimeoutError(), "TimeoutError"),
    ],
    ids=name,
)
def test_a_reason_is_one_line(error: Exception, reason: str) -> None:
    """It is the driver's own, without SQLAlchemy's statement; its class where it says nothing."""
    assert reason_of(error) == reason


class Server:
    """Fails with these errors, and then answers."""

    def __init__(self, errors: Iterable[Exception]) -> None:
        self._errors = [*errors]
        self.asked = 0

    async def ask(self) -> str:
        self.asked += 1
        if self._errors:
            raise self._errors.pop(0)
        return "PONG"


class TestAwaitServer:
    @pytest.fixture(autouse=True)
    def _hasty(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(server_wait, "_LOOK_AGAIN", 0.001)

    async def test_returns_the_answer(self) -> None:
        """As soon as there is one."""
        server = Server([RESET, RESET])
        assert await await_server(REDIS, server.ask, 10) == "PONG"
        assert server.asked == 3

    async def test_ends_with_a_refusal(self) -> None:
        """One that comes after a while, too."""
        server = Server([RESET, redis.AuthenticationError("wrong password")])
        with pytest.raises(StartupError, match="REDIS_URL: the server refuses: wrong password"):
            await await_server(REDIS, server.ask, 10)
        assert server.asked == 2

    async def test_passes_on_what_the_question_found(self) -> None:
        """A question may find that the start is in vain, and say so in its own words."""
        server = Server([StartupError("the table is not there")])
        with pytest.raises(StartupError, match=r"^the table is not there$"):
            await await_server(DATABASE, server.ask, 10)
        assert server.asked == 1
