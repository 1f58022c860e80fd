"""Requests to FastAPI and Starlette under a real server: what is in the database when the client has its answer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Annotated, Any

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route

import db
from db.asgi import SessionMiddleware, get_session
from tests.servers import Observer
from tests.waiting import eventually
from tests.web import FAIL_AT_COMMIT, WRITE, count, nobody_in_transaction, serving, write

SessionDep = Annotated[db.AsyncSession, Depends(get_session)]
CallNext = Callable[[Request], Awaitable[Response]]


async def test_a_row_is_committed_before_the_client_gets_the_response(app: FastAPI, postgres: Observer) -> None:
    """When the client has the head of the answer, the row is committed, though the body is still on its way."""
    client_has_looked = asyncio.Event()

    @app.post("/notes")
    async def create(session: SessionDep) -> StreamingResponse:
        await session.execute(WRITE, {"words": "hello"})

        async def body() -> AsyncIterator[str]:
            await client_has_looked.wait()
            yield "saved"

        return StreamingResponse(body())

    async with serving(app) as client, client.stream("POST", "/notes") as response:
        assert response.status_code == 200
        assert await count(postgres) == 1
        assert await postgres.idle_in_transaction() == 0
        client_has_looked.set()
        assert await response.aread() == b"saved"


async def test_a_failed_commit_is_a_500(app: FastAPI, postgres: Observer) -> None:
    """A COMMIT that the database refuses (a deferred foreign key) is a 500, never a 200."""

    @app.post("/replies")
    async def create(session: SessionDep) -> None:
        await session.execute(FAIL_AT_COMMIT)

    async with serving(app) as client:
        response = await client.post("/replies")
        assert response.status_code == 500
        await nobody_in_transaction(postgres)
    assert await postgres.fetchval("SELECT count(*) FROM reply") == 0


async def test_starlette_without_fastapi_commits_and_fails_likewise(database: db.Database, postgres: Observer) -> None:
    """The same in Starlette alone: a row for a 200, and a 500 where the COMMIT is refused."""

    async def create(request: Request) -> Response:
        await write(request.path_params["words"])
        if request.path_params["words"] == "bad":
            await (await db.session()).execute(FAIL_AT_COMMIT)
        return Response("saved")

    app = Starlette(routes=[Route("/notes/{words}", create)], middleware=[Middleware(SessionMiddleware)])
    async with serving(app) as client:
        assert (await client.get("/notes/good")).status_code == 200
        assert (await client.get("/notes/bad")).status_code == 500
    assert await count(postgres) == 1


async def test_a_swallowed_database_error_is_a_500(app: FastAPI, postgres: Observer) -> None:
    """A database error that the endpoint swallowed has aborted the transaction: a 500, and nothing is saved."""

    @app.post("/notes")
    async def create(session: SessionDep) -> str:
        await session.execute(WRITE, {"words": "once"})
        with contextlib.suppress(IntegrityError):
            await session.execute(WRITE, {"words": "once"})
        return "saved"

    async with serving(app) as client:
        assert (await client.post("/notes")).status_code == 500
        await nobody_in_transaction(postgres)
    assert await count(postgres) == 0


async def test_an_error_handled_in_a_savepoint_is_a_200(app: FastAPI, postgres: Observer) -> None:
    """An error that a savepoint contained leaves the rest of the request whole."""

    @app.post("/notes")
    async def create(session: SessionDep) -> str:
        await session.execute(WRITE, {"words": "once"})
        with contextlib.suppress(IntegrityError):
            async with session.begin_nested():
                await session.execute(WRITE, {"words": "once"})
        return "saved"

    async with serving(app) as client:
        assert (await client.post("/notes")).status_code == 200
    assert await count(postgres) == 1


async def test_refused_and_failed_requests_leave_nothing(app: FastAPI, postgres: Observer) -> None:
    """Statuses from 400 on and exceptions roll back."""

    @app.post("/refused")
    async def refused(session: SessionDep) -> None:
        await session.execute(WRITE, {"words": "refused"})
        raise HTTPException(409)

    @app.post("/failed")
    async def failed(session: SessionDep) -> None:
        await session.execute(WRITE, {"words": "failed"})
        raise ZeroDivisionError

    async with serving(app) as client:
        assert (await client.post("/refused")).status_code == 409
        assert (await client.post("/failed")).status_code == 500
        await nobody_in_transaction(postgres)
    assert await count(postgres) == 0


async def test_the_commit_policy_decides_by_the_status(database: db.Database, postgres: Observer) -> None:
    """`commit=` is asked with the status: here a 404 commits and a 200 does not."""
    app = FastAPI()
    app.add_middleware(SessionMiddleware, commit=lambda status: status == 404)

    @app.post("/{status}")
    async def create(status: int, session: SessionDep) -> Response:
        await session.execute(WRITE, {"words": str(status)})
        return Response(status_code=status)

    async with serving(app) as client:
        await client.post("/200")
        await client.post("/404")
    assert [row["words"] for row in await postgres.fetch("SELECT words FROM note")] == ["404"]


async def test_a_running_child_task_does_not_change_a_409(app: FastAPI, postgres: Observer) -> None:
    """A 409 goes out as such while a child task's statement is in flight, which is stopped."""

    @app.post("/notes")
    async def create(session: SessionDep) -> None:
        async def refuse() -> None:
            await eventually(lambda: postgres.backends("active"), equals=1)
            raise HTTPException(409)

        await asyncio.gather(session.execute(text("SELECT pg_sleep(30)")), refuse())

    async with serving(app) as client:
        async with asyncio.timeout(5):
            assert (await client.post("/notes")).status_code == 409
        await nobody_in_transaction(postgres)


async def test_concurrent_requests_have_their_own_sessions(app: FastAPI, postgres: Observer) -> None:
    """Twenty requests at once write twenty rows; every second of them is refused and leaves none."""

    @app.post("/notes/{number}")
    async def create(number: int, session: SessionDep) -> None:
        await session.execute(WRITE, {"words": str(number)})
        await session.execute(text("SELECT pg_sleep(0.01)"))
        if number % 2:
            raise HTTPException(409)

    async with serving(app) as client:
        await asyncio.gather(*(client.post(f"/notes/{number}") for number in range(20)))
        await nobody_in_transaction(postgres)
    assert await count(postgres) == 10


async def test_dependencies_and_endpoint_of_a_request_share_its_session(app: FastAPI, postgres: Observer) -> None:
    """Dependencies, the endpoint and what it calls get one session and so one transaction."""
    seen: list[db.AsyncSession] = []

    async def dependency(session: SessionDep) -> None:
        seen.append(session)
        await session.execute(WRITE, {"words": "dependency"})

    @app.post("/notes", dependencies=[Depends(dependency)])
    async def create(session: SessionDep) -> None:
        seen.extend((session, await db.session()))
        raise HTTPException(400)

    async with serving(app) as client:
        await client.post("/notes")
    assert len(seen) == 3
    assert len({id(session) for session in seen}) == 1
    assert await count(postgres) == 0


async def test_writes_in_the_exits_of_dependencies_are_committed(app: FastAPI, postgres: Observer) -> None:
    """FastAPI leaves dependencies after the response, or before it with scope="function": both writes are saved."""

    async def after_response(session: SessionDep) -> AsyncIterator[None]:
        yield
        await session.execute(WRITE, {"words": "after the response"})

    async def before_response(session: SessionDep) -> AsyncIterator[None]:
        yield
        await session.execute(WRITE, {"words": "before the response"})

    @app.post("/notes", dependencies=[Depends(after_response), Depends(before_response, scope="function")])
    async def create() -> None: ...

    async with serving(app) as client:
        assert (await client.post("/notes")).status_code == 200
        await eventually(lambda: count(postgres), equals=2)
        await nobody_in_transaction(postgres)


async def test_a_failed_commit_is_raised_in_dependencies(app: FastAPI, postgres: Observer) -> None:
    """A dependency sees that the commit failed before its exit runs as if all were well."""
    seen: list[str] = []

    async def dependency() -> AsyncIterator[None]:
        try:
            yield
        except IntegrityError:
            seen.append("IntegrityError")
            raise

    @app.post("/replies", dependencies=[Depends(dependency)])
    async def create(session: SessionDep) -> None:
        await session.execute(FAIL_AT_COMMIT)

    async with serving(app) as client:
        assert (await client.post("/replies")).status_code == 500
    assert seen == ["IntegrityError"]


async def test_get_session_without_the_middleware_names_the_middleware(
    database: db.Database, postgres: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    """`get_session` without `SessionMiddleware` is a 500 whose error names the middleware."""
    app = FastAPI()

    @app.post("/notes")
    async def create(session: SessionDep) -> None: ...

    async with serving(app) as client:
        assert (await client.post("/notes")).status_code == 500
    assert "add db.asgi.SessionMiddleware to the app" in caplog.text


async def test_a_sync_endpoint_uses_a_sync_session(app: FastAPI, database: db.Database, postgres: Observer) -> None:
    """A `def` endpoint, which FastAPI runs in a thread, uses the sync twin, committed with the same care."""

    async def get_sync_session() -> db.Session:
        return await db.session(database.sync)

    @app.post("/{table}")
    def create(table: str, session: Annotated[db.Session, Depends(get_sync_session)]) -> None:
        session.execute(WRITE, {"words": "thread"})
        if table == "reply":
            session.execute(FAIL_AT_COMMIT)

    async with serving(app) as client:
        assert (await client.post("/note")).status_code == 200
        assert (await client.post("/reply")).status_code == 500
        await nobody_in_transaction(postgres)
    assert await count(postgres) == 1


async def test_callbacks_run_before_the_response_starts(app: FastAPI, postgres: Observer) -> None:
    """Callbacks around the commit run before the response starts, in a request that used no session too."""
    events: list[str] = []

    @app.post("/{status}")
    async def create(status: int) -> Response:
        async def before(session: db.AsyncSession) -> None:
            await session.execute(WRITE, {"words": f"before_commit of {status}"})

        db.before_commit(before)
        db.on_commit(lambda: events.append(f"on_commit of {status}"))

        async def body() -> AsyncIterator[str]:
            events.append(f"body of {status}")
            yield "saved"

        return StreamingResponse(body(), status_code=status)

    async with serving(app) as client:
        await client.post("/200")
        assert await count(postgres) == 1
        await client.post("/400")
    assert events == ["on_commit of 200", "body of 200", "body of 400"]
    assert await count(postgres) == 1


async def test_a_cancelled_request_is_rolled_back(database: db.Database, postgres: Observer) -> None:
    """A server that cancels the request when its client goes away leaves no row, no statement and no transaction."""
    api = FastAPI()

    @api.post("/notes")
    async def create(session: SessionDep) -> None:
        await session.execute(WRITE, {"words": "unheard"})
        await session.execute(text("SELECT pg_sleep(30)"))

    async with serving(cancelling_on_disconnect(SessionMiddleware(api))) as client:
        asking = asyncio.create_task(client.post("/notes"))
        await eventually(lambda: postgres.backends("active"), equals=1)
        asking.cancel()
        await nobody_in_transaction(postgres)
    assert await count(postgres) == 0


@pytest.mark.parametrize("place", ["inside", "outside"])
async def test_a_request_commits_with_base_http_middleware(
    database: db.Database, postgres: Observer, place: str
) -> None:
    """Inside and outside of a BaseHTTPMiddleware, which runs the app in another task: the same commits and 500s."""
    app = FastAPI()
    if place == "inside":
        app.add_middleware(SessionMiddleware)

    @app.middleware("http")
    async def pass_on(request: Request, call_next: CallNext) -> Response:
        return await call_next(request)

    if place == "outside":
        app.add_middleware(SessionMiddleware)

    @app.post("/notes/{words}")
    async def create(words: str, session: SessionDep, background: BackgroundTasks) -> None:
        await session.execute(WRITE, {"words": words})
        background.add_task(write, f"background of {words}")
        if words == "bad":
            await session.execute(FAIL_AT_COMMIT)

    async with serving(app) as client:
        assert (await client.post("/notes/good")).status_code == 200
        await eventually(lambda: count(postgres), equals=2)
        assert (await client.post("/notes/bad")).status_code == 500
        await nobody_in_transaction(postgres)
    assert await count(postgres) == 2


async def test_another_middleware_cannot_turn_a_failed_commit_into_success(
    database: db.Database, postgres: Observer
) -> None:
    """A middleware inside that catches the failed commit may answer in its own way, but not with success."""
    api = FastAPI()

    @api.post("/notes")
    async def create(session: SessionDep) -> None:
        await session.execute(WRITE, {"words": "lost"})
        await session.execute(FAIL_AT_COMMIT)

    def answering(status: int) -> SessionMiddleware:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            try:
                await api(scope, receive, send)
            except IntegrityError:
                await JSONResponse({"sorry": True}, status_code=status)(scope, receive, send)

        return SessionMiddleware(app)

    async with serving(answering(503)) as client:
        response = await client.post("/notes")
        assert (response.status_code, response.json()) == (503, {"sorry": True})
    async with serving(answering(200)) as client:
        assert (await client.post("/notes")).status_code == 500
    assert await count(postgres) == 0
    await nobody_in_transaction(postgres)


@pytest.mark.parametrize(("status", "expected"), [(200, 2), (409, 0)])
async def test_a_mounted_app_joins_the_scope_of_the_outer_one(
    app: FastAPI, postgres: Observer, status: int, expected: int
) -> None:
    """A mounted app with its own `SessionMiddleware` joins the outer scope, and ends with it."""
    inner = FastAPI()
    inner.add_middleware(SessionMiddleware, commit=lambda _status: True)

    @inner.post("/notes")
    async def create(session: SessionDep) -> Response:
        await session.execute(WRITE, {"words": "inner"})
        return Response(status_code=status)

    async def outer(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        await write("outer")
        await inner(scope, receive, send)

    app.mount("/inner", outer)
    async with serving(app) as client:
        assert (await client.post("/inner/notes")).status_code == status
        await nobody_in_transaction(postgres)
    assert await count(postgres) == expected


async def test_startup_and_shutdown_run_in_scopes_of_their_own(database: db.Database, postgres: Observer) -> None:
    """Startup and shutdown of the app run, in scopes of their own; one that disposes leaves no backend."""
    seen: list[bool] = []

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        seen.append(db.in_scope())
        await db.isolated(write, "startup")
        yield
        await db.isolated(write, "shutdown")
        await database.dispose()

    async with serving(SessionMiddleware(FastAPI(lifespan=lifespan))):
        assert await count(postgres) == 1
    assert await count(postgres) == 2
    assert seen == [False]
    await eventually(postgres.backends, equals=0)


def cancelling_on_disconnect(app: Any) -> Any:
    """What Hypercorn does and uvicorn leaves to the app: cancel the request when its client has gone."""

    async def cancelling(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        serving = asyncio.create_task(app(scope, receive, send))
        while (await receive())["type"] != "http.disconnect":
            pass
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving

    return cancelling
