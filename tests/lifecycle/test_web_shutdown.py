"""The end of a web server that cancels the requests which are still running."""

import asyncio
import signal
from pathlib import Path

from tests.commands import Command
from tests.servers import Observer
from tests.waiting import at_once, eventually
from worker.embedded.port import free_port

_APP = """
from contextlib import asynccontextmanager

import db
from db.asgi import SessionMiddleware, get_session
from fastapi import Depends, FastAPI
from sqlalchemy import text


@asynccontextmanager
async def lifespan(app):
    yield
    await db.default_database().dispose()


app = FastAPI(lifespan=lifespan)
app.add_middleware(SessionMiddleware)


@app.middleware("http")
async def in_a_task_of_its_own(request, call_next):
    return await call_next(request)


@app.get("/")
async def slow(session=Depends(get_session)):
    await session.execute(text("UPDATE note SET words = 'b'"))
    await session.execute(text("SELECT pg_sleep(60)"))
"""


async def test_a_request_cancelled_at_shutdown_leaves_no_statement_and_no_lock(
    tmp_path: Path, database_url: str, postgres: Observer
) -> None:
    """uvicorn's graceful time is over: when the process has ended, so have the request's statement and its locks."""
    await postgres.execute("CREATE TABLE note (words text)")
    await postgres.execute("INSERT INTO note VALUES ('a')")
    (tmp_path / "app.py").write_text(_APP)
    port = free_port()
    options = ("--port", str(port), "--timeout-graceful-shutdown", "1")
    with Command("uvicorn", "app:app", *options, folder=tmp_path, environment={"DATABASE_URL": database_url}) as server:
        await server.says("running on")
        _, request = await asyncio.open_connection("127.0.0.1", port)
        request.write(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
        await eventually(lambda: postgres.backends("active"), equals=1)
        server.send(signal.SIGTERM)
        await server.ends()
        await at_once(eventually(postgres.backends, equals=0))
        request.close()
    assert await postgres.fetchval("SELECT words FROM note") == "a"
