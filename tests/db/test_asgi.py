"""`SessionMiddleware`, asked directly; real servers and frameworks are in tests/lifecycle/test_web_*.py."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

import db
from db.asgi import Message, Receive, Send, SessionMiddleware, get_session, is_success
from tests.commits import held_commits
from tests.servers import Observer

WRITE = text("INSERT INTO note (words) VALUES ('hello')")
FAIL_AT_COMMIT = text("INSERT INTO reply VALUES (404)")
Connection = MutableMapping[str, Any]


@asynccontextmanager
async def default(url: str) -> AsyncIterator[db.Database]:
    """The default database, with a table of notes, and one whose references are checked at COMMIT."""
    database = db.Database(url, default=True)
    async with db.scope():
        session = await db.session()
        await session.execute(text("CREATE TABLE note (id int UNIQUE, words text)"))
        await session.execute(
            text("CREATE TABLE reply (note_id int REFERENCES note (id) DEFERRABLE INITIALLY DEFERRED)")
        )
    try:
        yield database
    finally:
        db.set_default_database(None)
        await database.dispose()


@pytest.fixture(params=["postgresql", "sqlite"])
async def database(request: pytest.FixtureRequest, database_url: str, sqlite_url: str) -> AsyncIterator[db.Database]:
    async with default(database_url if request.param == "postgresql" else sqlite_url) as database:
        yield database


@pytest.fixture
async def postgres_database(database_url: str) -> AsyncIterator[db.Database]:
    async with default(database_url) as database:
        yield database


async def count() -> int:
    async with db.scope():
        return int(await (await db.session()).scalar(text("SELECT count(*) FROM note")) or 0)


async def write() -> None:
    await (await db.session()).execute(WRITE)


class Client:
    """Calls an app as a server would, and keeps what it sent."""

    def __init__(self) -> None:
        self.sent: list[Message] = []

    async def ask(self, app: Any, kind: str = "http") -> None:
        await app({"type": kind}, self.receive, self.send)

    async def receive(self) -> Message:
        return {"type": "http.request"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def statuses(self) -> list[int]:
        return [message["status"] for message in self.sent if message["type"] == "http.response.start"]


async def start(send: Send, status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status})


async def answer(send: Send, status: int = 200) -> None:
    await start(send, status)
    await send({"type": "http.response.body"})


@pytest.mark.parametrize(("status", "committed"), [(200, 1), (302, 1), (399, 1), (400, 0), (503, 0)])
async def test_status_decides_between_commit_and_rollback(database: db.Database, status: int, committed: int) -> None:
    """A status below 400 commits, any other rolls back."""

    async def app(connection: Connection, receive: Receive, send: Send) -> None:
        await write()
        await answer(send, status)

    await Client().ask(SessionMiddleware(app))
    assert await count() == committed
    assert is_success(status) == bool(committed)


async def test_failed_commit_sends_no_response(database: db.Database) -> None:
    """When the COMMIT fails its error comes out of `send`, and no start went out."""
    client = Client()

    async def app(connection: Connection, receive: Receive, send: Send) -> None:
        await write()
        await (await db.session()).execute(FAIL_AT_COMMIT)
        await answer(send)

    with pytest.raises(IntegrityError):
        await client.ask(SessionMiddleware(app))
    assert client.sent == []
    assert await count() == 0


async def test_failed_commit_cannot_become_a_success(database: db.Database) -> None:
    """An app that catches the error of the COMMIT can send an error page, but not a success."""
    client = Client()

    async def app(connection: Connection, receive: Receive, send: Send) -> None:
        await write()
        await (await db.session()).execute(FAIL_AT_COMMIT)
        for status in (200, 302):
            with pytest.raises(IntegrityError):
                await start(send, status)
        await answer(send, 503)

    await client.ask(SessionMiddleware(app))
    assert client.statuses == [503]
    assert await count() == 0


async def test_messages_before_the_start_commit_nothing(database: db.Database) -> None:
    """A message before the start passes, and the start is still what commits."""
    client = Client()

    async def app(connection: Connection, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.early_hint", "links": []})
        await (await db.session()).execute(FAIL_AT_COMMIT)
        await answer(send)

    with pytest.raises(IntegrityError):
        await client.ask(SessionMiddleware(app))
    assert [message["type"] for message in client.sent] == ["http.response.early_hint"]


async def test_request_without_a_response_is_rolled_back(
    database: db.Database, caplog: pytest.LogCaptureFixture
) -> None:
    """An app that returns without a response promised nothing: rolled back, and logged."""

    async def app(connection: Connection, receive: Receive, send: Send) -> None:
        await write()
        await send({"type": "http.response.early_hint", "links": []})

    await Client().ask(SessionMiddleware(app))
    assert await count() == 0
    assert "rolled back" in caplog.text


async def test_start_from_another_task_commits_the_request(database: db.Database) -> None:
    """The start may come from a task that the app made, whose context is a copy: it commits all the same."""

    async def app(connection: Connection, receive: Receive, send: Send) -> None:
        async def respond() -> None:
            await write()
            await answer(send)

        await asyncio.create_task(respond())

    await Client().ask(SessionMiddleware(app))
    assert await count() == 1


async def test_start_from_a_nested_scope_commits_the_request(postgres_database: db.Database) -> None:
    """The start commits the request's scope, and not one that the app has opened around its response."""

    async def app(connection: Connection, receive: Receive, send: Send) -> None:
        await write()
        with contextlib.suppress(ZeroDivisionError):
            async with db.scope():
                await write()
                await answer(send)
                raise ZeroDivisionError

    await Client().ask(SessionMiddleware(app))
    assert await count() == 1


async def test_session_goes_on_after_the_start(database: db.Database) -> None:
    """After the start the same session goes on, in a new transaction that is committed when the app returns."""

    async def app(connection: Connection, receive: Receive, send: Send) -> None:
        before = await db.session()
        await write()
        await start(send)
        assert not before.in_transaction()
        assert await db.session() is before
        await write()
        await send({"type": "http.response.body"})

    await Client().ask(SessionMiddleware(app))
    assert await count() == 2


async def test_error_after_the_start_keeps_the_responses_commit(database: db.Database) -> None:
    """An error after the start passes on; the commit of the response stands, and what came later is rolled back."""

    async def app(connection: Connection, receive: Receive, send: Send) -> None:
        await write()
        await answer(send)
        await write()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await Client().ask(SessionMiddleware(app))
    assert await count() == 1


async def test_middleware_leaves_an_open_scope_alone(database: db.Database) -> None:
    """Inside a scope that is open already the middleware neither commits nor rolls back."""

    async def app(connection: Connection, receive: Receive, send: Send) -> None:
        await write()
        await answer(send, status=500)

    async with db.scope():
        await Client().ask(SessionMiddleware(app))
        assert (await db.session()).in_transaction()
    assert await count() == 1


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
async def test_lifespan_and_websocket_connections_get_no_scope(kind: str) -> None:
    """Lifespan and websocket connections reach the app with the server's own channels, and without a scope."""
    client = Client()

    async def app(connection: Connection, receive: Receive, send: Send) -> None:
        assert receive == client.receive
        assert send == client.send
        assert not db.in_scope()
        await send({"type": "reached"})

    await client.ask(SessionMiddleware(app), kind)
    assert client.sent == [{"type": "reached"}]


async def test_dependency_gives_the_session_of_the_scope(database: db.Database) -> None:
    """`get_session` gives what `session()` gives, and like it raises where no scope is open."""
    async with db.scope():
        assert await get_session() is await db.session()
    with pytest.raises(db.NoScopeError, match="SessionMiddleware"):
        await get_session()


async def test_request_cancelled_in_its_commit_has_committed(
    postgres_database: db.Database, postgres: Observer
) -> None:
    """A request cancelled while its COMMIT is under way has committed, and says so: no transaction is left."""
    client = Client()

    async def app(connection: Connection, receive: Receive, send: Send) -> None:
        await write()
        await start(send)
        await asyncio.sleep(10)

    async with held_commits(postgres, "note") as commits:
        asking = asyncio.create_task(client.ask(SessionMiddleware(app)))
        await commits.begun()
        for _ in range(3):
            asking.cancel()
            await asyncio.sleep(0)
        assert not asking.done()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert client.statuses == [200]
    assert await count() == 1
    assert await postgres.idle_in_transaction() == 0


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ("", []),
        ("write", ["before", "on"]),
        ("write rollback write", ["before", "on"]),
        ("write rollback", []),
        ("write commit write", ["before", "on", "before", "on"]),
        ("write commit", ["before", "on"]),
    ],
)
async def test_callbacks_of_the_middleware_are_called_at_each_commit_of_a_transaction(
    database: db.Database, steps: str, expected: list[str]
) -> None:
    """They survive early commits and rollbacks, and are not called without a transaction; nor do they open one."""
    acts = {"write": insert_word, "commit": db.commit, "rollback": db.rollback}
    calls: list[str] = []

    async def before(session: db.AsyncSession) -> None:
        assert session is await db.session()
        calls.append("before")

    async def app(_connection: Connection, _receive: Receive, send: Send) -> None:
        for step in steps.split():
            await acts[step]()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    await Client().ask(SessionMiddleware(app, before_commit=before, on_commit=lambda: calls.append("on")))
    assert calls == expected


async def insert_word() -> None:
    await (await db.session()).execute(text("INSERT INTO note (words) VALUES ('again')"))
