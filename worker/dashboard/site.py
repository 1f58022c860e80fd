"""``Site``: what all pages of one dashboard share, and how a page is written."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from worker.admin.audit import AuditLog
from worker.admin.deployment import Deployment
from worker.admin.failures import Failures
from worker.admin.job_lines import Redact
from worker.admin.jobs import Jobs
from worker.admin.overview import OverviewReader
from worker.admin.queues import QueueAdmin
from worker.admin.workers import WorkerAdmin
from worker.aio.background import Background
from worker.config import Config
from worker.dashboard import plots, text
from worker.dashboard.auth import Auth, Token, Visitor
from worker.metrics.reader import MetricsReader
from worker.registry import load
from worker.task import Task

LARGEST_FORM = 256 * 1024
"""Bytes of a form that are read."""
_NOTE = "tandem_note"
_THEME = "tandem_theme"
_THEMES = ("light", "dark")
_LEADING = re.compile(r"^[^A-Za-z0-9?]+")  # slashes, backslashes, spaces and others that begin no page


class Site:
    """One dashboard.

    Args:
        auth: who may see and who may act.
        redact: masks secrets.
        title: the name in the corner.
        queues: queues to show besides those of ``WORKER_QUEUES``.
    """

    def __init__(self, auth: Auth, redact: Redact, title: str, queues: Sequence[str]) -> None:
        self.auth = auth
        self.redact = redact
        self.title = title
        self.background = Background()
        """What goes on after the response."""
        self._queues = tuple(queues)
        self._templates = Environment(
            loader=PackageLoader("worker.dashboard"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(text.FILTERS)
        self._templates.filters["bar"] = plots.bar
        self._templates.tests["long"] = text.is_long
        self._templates.globals["longest"] = text.LONGEST_SHOWN

    @cached_property
    def deployment(self) -> Deployment:
        """The servers of this process. Read at the first request, when the application has set them."""
        return Deployment.of_process().with_queues(self._queues)

    @cached_property
    def jobs(self) -> Jobs:
        return Jobs(self.deployment, redact=self.redact)

    @cached_property
    def failures(self) -> Failures:
        return Failures(self.deployment, background=self.background)

    @cached_property
    def metrics(self) -> MetricsReader:
        return MetricsReader(self.deployment.broker)

    @cached_property
    def overview(self) -> OverviewReader:
        return OverviewReader(self.deployment, self.metrics)

    @cached_property
    def queues(self) -> QueueAdmin:
        return QueueAdmin(self.deployment)

    @cached_property
    def workers(self) -> WorkerAdmin:
        return WorkerAdmin(self.deployment)

    @cached_property
    def audit(self) -> AuditLog:
        return AuditLog(self.deployment)

    @staticmethod
    def load_tasks() -> Mapping[str, Task[..., Any]]:
        """The tasks of the registry, by name.

        Raises:
            RegistryError: the registry cannot be loaded.
        """
        return load(Config.load().registry).tasks

    def page(self, request: Request, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
        """Write a page, or only its changing parts if the page itself asks for them again."""
        is_fragment = "x-fragment" in request.headers
        theme = request.cookies.get(_THEME)
        note = "" if is_fragment else unquote(request.cookies.get(_NOTE, ""))
        visitor: Visitor | None = getattr(request.state, "visitor", None)
        page = self._templates.get_template(template).render(
            layout="fragment.html" if is_fragment else "layout.html",
            base=request.scope.get("root_path", ""),
            here=here(request),
            visitor=visitor,
            may_act=visitor is not None and visitor.may_act,
            can_sign_out=isinstance(self.auth, Token),
            theme=theme if theme in _THEMES else "",
            title=self.title,
            note=note,
            **values,
        )
        response = HTMLResponse(page, status)
        if note:
            response.delete_cookie(_NOTE, path=_cookie_path(request))
        return response

    def back(self, request: Request, to: str, note: str = "") -> Response:
        """Send the visitor to a page of the dashboard, with a note of what was done."""
        response = RedirectResponse(url(request, to), 303)
        if note:
            response.set_cookie(
                _NOTE,
                quote(note[:600]),
                max_age=60,
                path=_cookie_path(request),
                httponly=True,
                samesite="strict",
                secure=request.url.scheme == "https",
            )
        return response

    def with_theme(self, request: Request, theme: str, to: str) -> Response:
        """Remember the theme of this browser. Anything but light and dark means the system's."""
        response = RedirectResponse(url(request, to), 303)
        if theme in _THEMES:
            response.set_cookie(_THEME, theme, max_age=31_536_000, path=_cookie_path(request), samesite="strict")
        else:
            response.delete_cookie(_THEME, path=_cookie_path(request))
        return response


def url(request: Request, to: str) -> str:
    """The URL of a page of this dashboard. `to` comes from a form, so it cannot name another host."""
    base = request.scope.get("root_path", "")
    return f"{base}/{_LEADING.sub('', to)}"


def here(request: Request) -> str:
    """The page and its query, without the dashboard's own path and a leading slash."""
    path = request.url.path.removeprefix(request.scope.get("root_path", "")).lstrip("/")
    return f"{path}?{request.url.query}" if request.url.query else path


async def form_of(request: Request) -> Mapping[str, list[str]]:
    """The fields of a form. Not by Starlette's parser, which needs one more package."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_FORM:
            raise HTTPException(413, f"A form has at most {LARGEST_FORM:,} bytes.")
    fields: dict[str, list[str]] = {}
    for name, value in parse_qsl(body.decode(errors="replace"), keep_blank_values=True):
        fields.setdefault(name, []).append(value)
    return fields


def one(fields: Mapping[str, list[str]], name: str, default: str = "") -> str:
    """The last value of a field."""
    return fields[name][-1] if fields.get(name) else default


def outside(fields: Mapping[str, list[str]], name: str) -> str:
    """The last value of a field for what comes from outside: an id, a name. Percent-encoded, as pages write it.

    Browsers would change its line breaks, and a page must not hold its control characters.
    """
    return unquote(one(fields, name))


def query(**values: object) -> str:
    """A query without empty values."""
    return urlencode({name: str(value) for name, value in values.items() if value not in (None, "")})


def _cookie_path(request: Request) -> str:
    return request.scope.get("root_path", "") or "/"
