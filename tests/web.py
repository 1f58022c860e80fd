"""Web applications under a real server, and the notes that they write."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Any

import httpx
import uvicorn
from sqlalchemy import text

import db
from tests.servers import Observer
from tests.waiting import eventually

WRITE = text("INSERT INTO note (words) VALUES (:words)")
FAIL_AT_COMMIT = text("INSERT INTO reply VALUES (404)")


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """`app` under uvicorn on a free port, in the loop of the test; a client whose base URL it is."""
    # Its errors go to pytest's log, and the reason why it did not start is raised by the task.
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        port = listening.getsockname()[1]
        running = asyncio.create_task(server.serve(sockets=[listening]))
        await eventually(lambda: server.started or running.done())
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                yield client
        finally:
            server.should_exit = True
            await running


@asynccontextmanager
async def notebook(url: str, postgres: Observer) -> AsyncIterator[db.Database]:
    """The default database, with a table of unique notes, and one of replies whose note is looked up at COMMIT."""
    await postgres.execute("CREATE TABLE note (id serial PRIMARY KEY, words text UNIQUE)")
    await postgres.execute("CREATE TABLE reply (note_id int REFERENCES note DEFERRABLE INITIALLY DEFERRED)")
    database = db.Database(url, default=True)
    try:
        yield database
    finally:
        db.set_default_database(None)
        await database.dispose()


async def write(words: str) -> None:
    """Write through whatever scope is open here."""
    session = await db.session()
    await session.execute(WRITE, {"words": words})


async def notes(postgres: Observer) -> list[str]:
    """What is written, in alphabetical order."""
    return [row["words"] for row in await postgres.fetch("SELECT words FROM note ORDER BY words")]


async def nobody_in_transaction(postgres: Observer) -> None:
    """Wait until the server runs nothing and holds no transaction open for anybody."""
    await eventually(lambda: postgres.backends("active"), equals=0)
    await eventually(postgres.idle_in_transaction, equals=0)


async def count(postgres: Observer) -> int:
    """How many notes there are."""
    return len(await notes(postgres))
