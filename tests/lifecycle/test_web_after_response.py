"""What runs after the response has started: streaming bodies, background tasks and orphans, under a real server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated

import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from sqlalchemy import text
from starlette.background import BackgroundTask

import db
from db.asgi import SessionMiddleware, get_session
from tests.servers import Observer
from tests.waiting import eventually
from tests.web import FAIL_AT_COMMIT, WRITE, count, nobody_in_transaction, notes, serving, write

SessionDep = Annotated[db.AsyncSession, Depends(get_session)]
CallNext = Callable[[Request], Awaitable[Response]]


async def test_writes_of_a_streaming_body_are_committed(app: FastAPI, postgres: Observer) -> None:
    """Ten writes of a body, half through the endpoint's own session object, give ten rows."""

    @app.post("/")
    async def stream(session: SessionDep) -> StreamingResponse:
        await session.execute(WRITE, {"words": "endpoint"})

        async def body() -> AsyncIterator[str]:
            for number in range(5):
                await write(f"body {number}")
                await session.execute(WRITE, {"words": f"once more {number}"})
                yield "written"

        return StreamingResponse(body())

    async with serving(app) as client:
        assert (await client.post("/")).status_code == 200
        await eventually(lambda: count(postgres), equals=11)
        await nobody_in_transaction(postgres)


async def test_a_failing_body_loses_only_its_own_writes(
    app: FastAPI, postgres: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    """An error in the body rolls back what the body wrote, breaks the answer off and is logged; what the endpoint wrote
    stands."""

    @app.post("/")
    async def stream() -> StreamingResponse:
        await write("endpoint")

        async def body() -> AsyncIterator[str]:
            for number in range(5):
                await write(f"body {number}")
                yield "written"
            raise ZeroDivisionError

        return StreamingResponse(body())

    async with serving(app) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post("/")
        await nobody_in_transaction(postgres)
    assert await notes(postgres) == ["endpoint"]
    assert "ZeroDivisionError" in caplog.text


async def test_a_long_body_may_commit_as_it_goes(app: FastAPI, postgres: Observer) -> None:
    """A long body commits early, and holds no transaction while its client reads."""
    client_has_looked = asyncio.Event()

    @app.post("/")
    async def stream() -> StreamingResponse:
        async def body() -> AsyncIterator[str]:
            await write("body")
            await db.commit()
            yield "written"
            await client_has_looked.wait()

        return StreamingResponse(body())

    async with serving(app) as client, client.stream("POST", "/") as response:
        async for _chunk in response.aiter_text():
            assert await notes(postgres) == ["body"]
            assert await postgres.idle_in_transaction() == 0
            client_has_looked.set()


async def test_a_client_that_leaves_rolls_back_the_body_and_not_the_endpoint(
    app: FastAPI, postgres: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that leaves in the middle of a body: half of the body's work is rolled back with a warning, and the
    endpoint's stands."""
    ended = asyncio.Event()

    @app.post("/")
    async def stream() -> StreamingResponse:
        await write("endpoint")

        async def body() -> AsyncIterator[str]:
            yield "begun"
            await write("body")
            try:
                await (await db.session()).execute(text("SELECT pg_sleep(30)"))
            finally:
                ended.set()

        return StreamingResponse(body())

    async with serving(app) as client:
        async with client.stream("POST", "/") as response:
            reading = response.aiter_text()
            assert await anext(reading) == "begun"
            await eventually(lambda: postgres.backends("active"), equals=1)
        async with asyncio.timeout(5):
            await ended.wait()
        await nobody_in_transaction(postgres)
    assert await notes(postgres) == ["endpoint"]
    assert "the response was broken off" in caplog.text
    assert "Exception in ASGI application" not in caplog.text


async def test_writes_of_background_tasks_are_committed(app: FastAPI, postgres: Observer) -> None:
    """Ten background tasks that write through `session()` give ten rows, after those of the endpoint."""

    @app.post("/")
    async def create(session: SessionDep, background: BackgroundTasks) -> None:
        await session.execute(WRITE, {"words": "endpoint"})
        for number in range(10):
            background.add_task(write, f"background {number}")

    async with serving(app) as client:
        assert (await client.post("/")).status_code == 200
        await eventually(lambda: count(postgres), equals=11)
        await nobody_in_transaction(postgres)


async def test_a_failing_background_task_rolls_back_those_before_it(
    app: FastAPI, postgres: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    """A background task that fails rolls back those before it, and says so in the log; isolated ones and the endpoint's
    write stand."""

    async def fail() -> None:
        raise ZeroDivisionError

    @app.post("/")
    async def create(session: SessionDep, background: BackgroundTasks) -> None:
        await session.execute(WRITE, {"words": "endpoint"})
        background.add_task(write, "background")
        background.add_task(db.isolated, write, "isolated")
        background.add_task(fail)

    async with serving(app) as client:
        assert (await client.post("/")).status_code == 200
        await eventually(lambda: "ZeroDivisionError" in caplog.text)
        await nobody_in_transaction(postgres)
    assert await notes(postgres) == ["endpoint", "isolated"]


async def test_a_failed_commit_after_the_response_is_logged(
    app: FastAPI, postgres: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    """When the background's own COMMIT is refused, the client cannot be told any more, but the server's log is."""

    async def reply() -> None:
        await (await db.session()).execute(FAIL_AT_COMMIT)

    @app.post("/")
    async def create(background: BackgroundTasks) -> None:
        background.add_task(reply)

    async with serving(app) as client:
        assert (await client.post("/")).status_code == 200
        await eventually(lambda: "ForeignKeyViolationError" in caplog.text)
        await nobody_in_transaction(postgres)


async def test_the_background_task_of_a_401_is_committed(app: FastAPI, postgres: Observer) -> None:
    """A 401 rolls back what the endpoint wrote; its background task writes on and is saved."""

    @app.post("/")
    async def login(session: SessionDep) -> Response:
        await session.execute(WRITE, {"words": "endpoint"})
        return JSONResponse({}, status_code=401, background=BackgroundTask(write, "audit"))

    async with serving(app) as client:
        assert (await client.post("/")).status_code == 401
        await eventually(lambda: count(postgres), equals=1)
    assert await notes(postgres) == ["audit"]


async def test_a_child_task_that_outlives_its_request_gets_scope_ended_error(app: FastAPI, postgres: Observer) -> None:
    """A child task that outlives the request gets `ScopeEndedError`, and writes nothing."""
    request_is_over = asyncio.Event()
    orphans: list[asyncio.Task[None]] = []

    @app.post("/")
    async def create(session: SessionDep) -> None:
        async def orphan() -> None:
            await request_is_over.wait()
            with pytest.raises(db.ScopeEndedError):
                await write("orphan")
            await session.execute(WRITE, {"words": "orphan"})

        orphans.append(asyncio.create_task(orphan()))

    async with serving(app) as client:
        assert (await client.post("/")).status_code == 200
    # The server has stopped, so the request's own task has too.
    request_is_over.set()
    with pytest.raises(db.ScopeEndedError):
        await orphans[0]
    assert await count(postgres) == 0
    await nobody_in_transaction(postgres)


@pytest.mark.parametrize("place", ["inside", "outside"])
async def test_a_streaming_body_commits_with_base_http_middleware(
    database: db.Database, postgres: Observer, place: str
) -> None:
    """Inside a BaseHTTPMiddleware ten writes of a body give ten rows; outside, all rows or a 500 and none."""
    app = FastAPI()
    if place == "inside":
        app.add_middleware(SessionMiddleware)

    @app.middleware("http")
    async def pass_on(request: Request, call_next: CallNext) -> Response:
        return await call_next(request)

    if place == "outside":
        app.add_middleware(SessionMiddleware)

    @app.post("/")
    async def stream() -> StreamingResponse:
        async def body() -> AsyncIterator[str]:
            for number in range(10):
                await write(f"body {number}")
                yield "written"

        return StreamingResponse(body())

    async with serving(app) as client:
        with contextlib.suppress(httpx.RemoteProtocolError):
            response = await client.post("/")
        await nobody_in_transaction(postgres)
    if place == "inside":
        assert response.status_code == 200
    assert await count(postgres) == (10 if response.status_code == 200 else 0)
