"""Failed jobs in groups, and retrying or discarding many of them at once."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from worker.admin.bulk_progress import BulkAction, BulkProgress, Selection
from worker.admin.failure_groups import OTHER_ERRORS
from worker.broker.records import now_ms
from worker.dashboard.plots import spark
from worker.dashboard.site import Site, form_of, one, outside

_PACES = {"": None, "100": 100.0, "10": 10.0, "1": 1.0}
_BARS = "failures an hour, of the last 24 hours"
_SHOWN = 200  # groups on the page


class FailurePages:
    """The pages about failures."""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def index(self, request: Request) -> Response:
        """List the groups, the one with the latest failure first."""
        failures = self._site.failures
        overview = await failures.overview()
        sort = request.query_params.get("sort", "newest")
        task = request.query_params.get("task", "").strip()
        groups = [group for group in overview.groups if task in ("", group.task)]
        if sort == "jobs":
            groups.sort(key=lambda group: -group.jobs)
        now = now_ms()
        return self._site.page(
            request,
            "failures.html",
            section="failures",
            overview=overview,
            groups=[
                (group, spark(group.bars(now), "failures an hour, of the last 24 hours")) for group in groups[:_SHOWN]
            ],
            more=len(groups) - _SHOWN,
            sort=sort,
            task=task,
            until=now,
            other=OTHER_ERRORS,
            shown=lambda group: self._site.redact(group.task, "error", group.example),
        )

    async def confirm(self, request: Request) -> Response:
        """Count the jobs of a selection, and ask how to act on them."""
        failures = self._site.failures
        await failures.overview()
        params = request.query_params
        selection = _selection(params.get("task"), params.get("kind"), params.get("queue"), params.get("until", ""))
        number, is_more = failures.count(selection)
        return self._site.page(
            request,
            "confirm.html",
            section="failures",
            action=_action(params.get("action", "")),
            selection=selection,
            number=number,
            is_more=is_more,
            paces=_PACES,
        )

    async def start(self, request: Request) -> Response:
        """Begin a bulk action."""
        form = await form_of(request)
        task, kind, queue = (outside(form, name) if name in form else None for name in ("task", "kind", "queue"))
        selection = _selection(task, kind, queue, one(form, "until"))
        pace = one(form, "pace")
        if pace not in _PACES:
            raise HTTPException(400, "There is no such pace.")
        progress = await self._site.failures.start(
            _action(one(form, "action")),
            selection,
            actor=request.state.visitor.name,
            one_first=one(form, "how") == "one",
            pace=_PACES[pace],
        )
        return self._site.back(request, f"bulk/{progress.id}")

    async def progress(self, request: Request) -> Response:
        """Show how far a bulk action has come."""
        progress = await self._progress(request)
        return self._site.page(request, "bulk.html", section="failures", run=progress)

    async def stop(self, request: Request) -> Response:
        """Ask a bulk action to stop."""
        progress = await self._progress(request)
        await self._site.failures.stop(progress.id)
        return self._site.back(request, f"bulk/{progress.id}", "It stops after its present batch.")

    async def _progress(self, request: Request) -> BulkProgress:
        progress = await self._site.failures.progress(request.path_params["run"])
        if progress is None:
            raise HTTPException(404, "There is no such bulk action. Each is shown for a day.")
        return progress


def _selection(task: str | None, kind: str | None, queue: str | None, until: str) -> Selection:
    if not until.isdigit():
        raise HTTPException(400, "The time up to which jobs are meant is missing.")
    return Selection(task=task or None, kind=kind, queue=queue or None, until=int(until))


def _action(name: str) -> BulkAction:
    try:
        return BulkAction(name)
    except ValueError:
        raise HTTPException(400, "There is no such action.") from None
