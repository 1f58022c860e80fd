"""``Guard``: every request passes it before any page is read or any action done.

1. Who is it? Without an answer there is no page, but a sign-in or a refusal.
2. Does it act? Then its role and its origin must allow that.
3. Every response forbids the browser what the pages do not need: other hosts, inline code and styles, frames, caches.
"""

import logging

from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from db.errors import DbError
from db.transient import sqlstate
from worker.broker.errors import RedisError
from worker.dashboard.auth import Basic, Token, is_same_site, visitor_of
from worker.dashboard.site import Site, here, query
from worker.errors import WorkerError

logger = logging.getLogger("worker")

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_SAFE = ("GET", "HEAD")
_OPEN = ("static/", "sign-in")  # what a visitor needs to sign in
_FOR_VIEWERS = ("theme", "sign-out")  # forms that change nothing but the visitor's own browser


class Guard:
    """ASGI middleware: see the module."""

    def __init__(self, app: ASGIApp, site: Site) -> None:
        self._app = app
        self._site = site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        path = here(request).partition("?")[0]

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        response = await self._refusal(request, path)
        if response is not None:
            await response(scope, receive, send_guarded)
            return
        try:
            if not path.startswith(_OPEN):
                await self._refresh(request)
            await self._app(scope, receive, send_guarded)
        except (RedisError, SQLAlchemyError, DbError, WorkerError, OSError) as error:
            logger.warning("the dashboard cannot show %s: %s", path or "its first page", error)
            await self._failed(request, error)(scope, receive, send_guarded)

    async def _refresh(self, request: Request) -> None:
        """Look which queues there are. A form needs no Redis for that: one that acts on Redis fails by itself."""
        try:
            await self._site.deployment.refresh()
        except (RedisError, WorkerError, OSError):
            if request.method in _SAFE:
                raise

    async def _refusal(self, request: Request, path: str) -> Response | None:
        """The response to a request that may not go on. None if it may."""
        acts = request.method not in _SAFE
        if acts and not is_same_site(request):
            return PlainTextResponse("This request comes from another site.\n", 403)
        visitor = await visitor_of(self._site.auth, request)
        request.state.visitor = visitor
        if path.startswith(_OPEN):
            return None
        if visitor is None:
            return self._unknown(request)
        if acts and not visitor.may_act and path not in _FOR_VIEWERS:
            return PlainTextResponse("You may look, and not act: an operator may.\n", 403)
        return None

    def _unknown(self, request: Request) -> Response:
        if isinstance(self._site.auth, Basic):
            challenge = {"www-authenticate": 'Basic realm="Tandem", charset="UTF-8"'}
            return PlainTextResponse("Sign in.\n", 401, challenge)
        is_page = request.method in _SAFE and "text/html" in request.headers.get("accept", "")
        if isinstance(self._site.auth, Token) and is_page and "x-fragment" not in request.headers:
            base = request.scope.get("root_path", "")
            return RedirectResponse(f"{base}/sign-in?{query(back=here(request))}", 303)
        return PlainTextResponse("You may not see this page.\n", 401 if isinstance(self._site.auth, Token) else 403)

    def _failed(self, request: Request, error: Exception) -> Response:
        is_slow = isinstance(error, SQLAlchemyError) and sqlstate(error) == "57014"
        reason = str(getattr(error, "orig", None) or error).partition("\n")[0] or type(error).__name__
        if is_slow:
            reason = "the database took longer than the dashboard lets a statement take"
        elif isinstance(error, RedisError):
            reason = f"Redis: {reason}"
        return self._site.page(request, "failed.html", status=503, reason=reason, section="")
