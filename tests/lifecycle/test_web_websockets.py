"""Websockets under a real server: no scope of the connection's, one for each message."""

from collections.abc import AsyncIterator
from typing import Annotated

import pytest
from fastapi import Depends, FastAPI, WebSocket
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

import db
from db.asgi import SessionMiddleware, get_session
from tests.servers import Observer
from tests.waiting import eventually
from tests.web import WRITE, count, notes, serving


@pytest.fixture
async def socket(database: db.Database) -> AsyncIterator[ClientConnection]:
    """A connection to an app that writes down each message in a scope of its own, and says so; "fail" raises."""
    app = FastAPI()
    app.add_middleware(SessionMiddleware)

    @app.websocket("/")
    async def notebook(websocket: WebSocket) -> None:
        await websocket.accept()
        async for words in websocket.iter_text():
            async with db.scope():
                session = await db.session()
                await session.execute(WRITE, {"words": words})
                if words == "fail":
                    raise ZeroDivisionError
            await websocket.send_text("written")

    async with serving(app) as client, connect(f"ws://{client.base_url.netloc.decode()}/") as socket:
        yield socket


async def test_each_message_is_committed_before_its_answer(socket: ClientConnection, postgres: Observer) -> None:
    """Between two messages the first is committed, and no transaction is open."""
    for number in range(3):
        await socket.send(str(number))
        assert await socket.recv() == "written"
        assert await count(postgres) == number + 1
        assert await postgres.idle_in_transaction() == 0


async def test_a_failed_message_does_not_roll_back_earlier_ones(socket: ClientConnection, postgres: Observer) -> None:
    """A message that fails is rolled back and ends the connection; those before it stand."""
    await socket.send("first")
    await socket.recv()
    await socket.send("fail")
    with pytest.raises(ConnectionClosed):
        await socket.recv()
    assert await notes(postgres) == ["first"]
    await eventually(postgres.idle_in_transaction, equals=0)


async def test_session_in_a_websocket_without_a_scope_shows_how_to_open_one(database: db.Database) -> None:
    """`session()` in a websocket, outside a scope of its own, raises an error that shows how to open one."""
    app = FastAPI()
    app.add_middleware(SessionMiddleware)

    @app.websocket("/")
    async def ask(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            await db.session()
        except db.NoScopeError as error:
            await websocket.send_text(str(error))

    async with serving(app) as client, connect(f"ws://{client.base_url.netloc.decode()}/") as socket:
        assert "async with db.scope():" in str(await socket.recv())


async def test_get_session_as_a_websocket_parameter_refuses_the_connection(
    database: db.Database, caplog: pytest.LogCaptureFixture
) -> None:
    """`get_session` as a parameter of a websocket ends the handshake with the same error, instead of a session that
    would live as long as the connection."""
    app = FastAPI()
    app.add_middleware(SessionMiddleware)

    @app.websocket("/")
    async def ask(websocket: WebSocket, session: Annotated[db.AsyncSession, Depends(get_session)]) -> None:
        await websocket.accept()

    async with serving(app) as client:
        with pytest.raises(InvalidStatus):
            await connect(f"ws://{client.base_url.netloc.decode()}/")
    assert "NoScopeError" in caplog.text
