"""Errors of a server that a start waits out, and errors that end it at once."""

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
    """Return an error of the server as SQLAlchemy raises it."""
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
def test_a_server_that_does_not_answer_is_asked_again_until_the_time_is_up(variable: str, error: Exception) -> None:
    """When the time is up, one line names the variable and the error."""
    assert ServerWait(variable, 60).pause_after(error) > 0
    with pytest.raises(StartupError) as info:
        ServerWait(variable, -1).pause_after(error)
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
def test_a_server_that_refuses_is_not_asked_again(variable: str, error: Exception) -> None:
    """One line names the variable and the server's reason."""
    with pytest.raises(StartupError) as info:
        ServerWait(variable, 60).pause_after(error)
    assert str(info.value) == f"{variable}: the server refuses: {reason_of(error)}"


def test_an_unusable_url_is_not_reported_as_a_refusal() -> None:
    """No server was asked, so the line does not say that one refuses."""
    with pytest.raises(StartupError) as info:
        ServerWait(DATABASE, 60).pause_after(DatabaseURLError("it names no driver"))
    assert str(info.value) == "DATABASE_URL: it names no driver"


def test_a_reason_is_logged_once_until_another_one_comes(caplog: pytest.LogCaptureFixture) -> None:
    """A repeated reason is not logged again, unless another one came in between."""
    caplog.set_level(logging.INFO, "worker")
    wait = ServerWait(REDIS, 60)
    for reason in ("refused", "refused", "loading", "refused"):
        wait.pause_after(redis.ConnectionError(reason))
    assert caplog.messages == [f"waiting for REDIS_URL: {reason}" for reason in ("refused", "loading", "refused")]


def test_the_last_try_is_made_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A try has the rest of the time, and a moment at least. The wait ends when the time is over, not before."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    wait = ServerWait(REDIS, 10)
    now += 9.5
    assert wait.left == 0.5
    now += wait.pause_after(RESET)
    assert wait.left == pytest.approx(0.3)
    now += wait.pause_after(RESET)
    now += (pause := wait.pause_after(RESET))
    assert pause == pytest.approx(0.1)
    assert wait.left == 0.1
    with pytest.raises(StartupError, match="no answer within 10 s"):
        wait.pause_after(RESET)


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
    """The reason is the driver's message without SQLAlchemy's statement, or the error's class."""
    assert reason_of(error) == reason


class Server:
    """A server that fails with these errors and then answers."""

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
    def _short_pauses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(server_wait, "_PAUSE", 0.001)

    async def test_waiting_returns_the_servers_first_answer(self) -> None:
        """The server is not asked again after its first answer."""
        server = Server([RESET, RESET])
        assert await await_server(REDIS, server.ask, 10) == "PONG"
        assert server.asked == 3

    async def test_a_refusal_ends_the_waiting(self) -> None:
        """A refusal ends the waiting, also after other errors."""
        server = Server([RESET, redis.AuthenticationError("wrong password")])
        with pytest.raises(StartupError, match="REDIS_URL: the server refuses: wrong password"):
            await await_server(REDIS, server.ask, 10)
        assert server.asked == 2

    async def test_a_startup_error_of_the_question_is_raised_unchanged(self) -> None:
        """A question to the server may find a reason of its own not to start."""
        server = Server([StartupError("the table is not there")])
        with pytest.raises(StartupError, match=r"^the table is not there$"):
            await await_server(DATABASE, server.ask, 10)
        assert server.asked == 1
