"""The audit: every action of a person."""

from starlette.requests import Request
from starlette.responses import Response

from worker.dashboard.site import Site

_PAGE = 50
_FILTERS = ("actor", "action", "subject")


class AuditPage:
    """The page of all actions."""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def index(self, request: Request) -> Response:
        """List the actions, the latest first."""
        params = request.query_params
        before = params.get("before", "")
        given = {name: params.get(name, "").strip() for name in _FILTERS}
        entries = await self._site.audit.read(
            before=int(before) if before.isdigit() else None,
            limit=_PAGE + 1,
            **{name: value or None for name, value in given.items()},
        )
        return self._site.page(
            request,
            "audit.html",
            section="audit",
            entries=entries[:_PAGE],
            given=given,
            following=entries[_PAGE - 1].id if len(entries) > _PAGE else None,
            is_first=not before,
        )
