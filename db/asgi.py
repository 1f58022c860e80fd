"""``SessionMiddleware``: one scope a request, committed before the client is told.

1. A request is a scope: `session()` gives the same session to the endpoint, its dependencies and its child tasks.
2. When the app starts its response the scope is committed, or rolled back, as the status says; only then does
   the start go out. So a COMMIT that fails becomes the server's 500, and no 200 is sent for work that is not saved.
3. The scope then goes on, with the same sessions in new transactions, for a streaming body, background tasks and the
   exits of FastAPI's dependencies. Their writes are committed when the app returns. They are rolled back if the app
   raises, which the server logs, or breaks its response off because the client left, which is logged here.
4. An exception before the start rolls back and passes on; one after it leaves the commit of the response as it is.
5. A websocket gets no scope: it may live for hours, and a transaction must not. Open one for each message.
6. Inside a scope that is open already the middleware does nothing, as that scope's opener ends it. Such a scope may be
   a test's, or that of an outer `SessionMiddleware` around a mounted app.
"""

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from enum import Enum
from typing import Any, TypeAlias

from db.errors import ConcurrentUseError
from db.scope import Scope, scope
from db.session.callbacks import BeforeCommit, OnCommit
from db.session.classes import AsyncSession
from db.sessions import in_scope, session

logger = logging.getLogger("db")

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
# Starlette and Litestar have types of their own for the three arguments. These fit both.
ASGIApp: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]

CommitPolicy: TypeAlias = Callable[[int], bool]
"""Gets the response's status. Returns whether to commit; otherwise the request is rolled back."""


def is_success(status: int) -> bool:
    """The default policy: commit below 400, redirects included.

    ::

        app.add_middleware(SessionMiddleware, commit=lambda status: status < 500)
    """
    return status < 400


class SessionMiddleware:
    """One scope a request.

    ::

        app.add_middleware(SessionMiddleware)

    Put it inside of middleware made with Starlette's `BaseHTTPMiddleware` (``@app.middleware("http")``): add it first.
    Outside it works too, with one exception: such middleware asks for the body before it passes the start on, so a body
    that is streamed from the request's session gets `ConcurrentUseError`.

    Args:
        app: any ASGI application.
        commit: decides by the status whether to commit. Default: below 400.
        before_commit: called as `await before_commit(session)` before each COMMIT of a request, early ones included,
            for each session that has a transaction. It refuses the commit by raising.
        on_commit: called without arguments, and awaited if it is awaitable, after each such COMMIT.
    """

    def __init__(
        self,
        app: ASGIApp,
        commit: CommitPolicy = is_success,
        *,
        before_commit: BeforeCommit | None = None,
        on_commit: OnCommit | None = None,
    ) -> None:
        self.app = app
        self.commit = commit
        self.before_commit = before_commit
        self.on_commit = on_commit

    async def __call__(self, connection: Any, receive: Any, send: Any) -> None:
        if connection["type"] != "http" or in_scope():
            await self.app(connection, receive, send)
            return
        async with scope() as request:
            if self.before_commit is not None or self.on_commit is not None:
                request.call_at_each_commit(self.before_commit, self.on_commit)
            response = _Response(request, self.commit, send)
            await self.app(connection, receive, response.send)
            if not response.complete:
                await _roll_back_unfinished(request)


async def get_session() -> AsyncSession:
    """The session of the request, as a FastAPI dependency: ``Annotated[AsyncSession, Depends(get_session)]``.

    ::

        @app.post("/orders")
        async def order(session: Annotated[AsyncSession, Depends(get_session)]) -> None:
            session.add(Order(id=7))

    Raises:
        NoScopeError: the app has no `SessionMiddleware`, or this is a websocket. A dependency could not do its work:
            FastAPI leaves it after the response was sent, when it is too late to say that the commit failed.
    """
    return await session()


class _Progress(Enum):
    WAITING = "waiting"
    STARTED = "started"
    COMPLETE = "complete"


class _Response:
    """The response of one request. It commits or rolls back the scope before the response's start."""

    def __init__(self, request: Scope, commit: CommitPolicy, send: Send) -> None:
        self._request = request
        self._commit = commit
        self._send = send
        self._progress = _Progress.WAITING
        self._failure: Exception | None = None

    @property
    def complete(self) -> bool:
        return self._progress is _Progress.COMPLETE

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._commit_or_roll_back(message["status"])
            self._progress = _Progress.STARTED
            await self._send(message)
        else:
            await self._send(message)
            if self._progress is _Progress.STARTED and not message.get("more_body", False):
                self._progress = _Progress.COMPLETE

    async def _commit_or_roll_back(self, status: int) -> None:
        if not self._commit(status):
            await self._request.rollback()
            return
        if self._failure is not None:
            # The app caught the error, and reports success all the same.
            raise self._failure
        try:
            await self._request.commit()
        except Exception as error:
            self._failure = error
            if isinstance(error, ConcurrentUseError):
                error.add_note("when the response started, this session was still in use by a child task or the body")
            raise


async def _roll_back_unfinished(request: Scope) -> None:
    """Roll back a response without an end. Starlette returns as usual when a client leaves in the middle of a body."""
    if request.has_begun:
        logger.warning("the response was broken off: writes after its start are rolled back")
    await request.rollback()
