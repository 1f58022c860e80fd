"""The list of jobs, and the page of one job."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from db.text.plural import plural
from worker.admin.job_actions import ActionRefusedError, JobActions
from worker.admin.job_detail import JobDetail
from worker.admin.job_line import Count
from worker.admin.job_query import JobQuery
from worker.admin.job_state import JobState
from worker.admin.why import Reason, why
from worker.context import from_milliseconds
from worker.dashboard.pages.slow import SlowValue
from worker.dashboard.site import Site, form_of, one, outside, query
from worker.dashboard.text import as_json

_FILTERS = ("task", "queue", "error", "text", "id", "since", "until")
_SPANS = {"5m": 5, "1h": 60, "24h": 24 * 60, "7d": 7 * 24 * 60}  # minutes
_VERBS = {"retry": "Retried", "discard": "Discarded", "abort": "Asked to abort", "run": "Made due now:"}
_MOST_AT_ONCE = 100  # jobs that one form of the list may name


class JobPages:
    """The pages about jobs."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._counts = SlowValue(self._count, site.background)

    async def _count(self) -> dict[JobState, Count]:
        return await self._site.jobs.counts()

    async def index(self, request: Request) -> Response:
        """List the jobs in one state, by the filters in the URL."""
        params = request.query_params
        given = {name: params.get(name, "").strip() for name in _FILTERS}
        try:
            state = JobState(params.get("state", "") or JobState.DONE)
            job_query = JobQuery(
                state,
                id=given["id"] or None,
                task=given["task"] or None,
                queue=given["queue"] or None,
                error=given["error"] or None,
                text=given["text"] or None,
                since=_moment(given["since"]),
                until=_moment(given["until"]),
            )
            page = await self._site.jobs.page(job_query, params.get("after") or None)
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        if given["id"] and len(page.lines) == 1 and page.lines[0].id == given["id"]:
            line = page.lines[0]
            return self._site.back(request, f"job?{query(id=line.id, at=line.enqueued_at)}")
        return self._site.page(
            request,
            "jobs.html",
            section="jobs",
            states=[*JobState],
            state=state,
            counts=await self._counts.get(),
            given=given,
            spans=_SPANS,
            queues=self._site.deployment.queues,
            query=job_query,
            page=page,
            is_first="after" not in params,
            link=lambda **changed: query(**({"state": state.value} | given | changed)),
            next_link=query(**({"state": state.value} | given), after=page.next),
            actions=_actions_on(state),
        )

    async def act_on_selected(self, request: Request) -> Response:
        """Do one action on the jobs that were selected in the list."""
        form = await form_of(request)
        action, selected = one(form, "action"), form.get("job", [])[:_MOST_AT_ONCE]
        done, refused = 0, ""
        for key in selected:
            at, queue, job_id = map(unquote, (*key.split(" ", 2), "", "")[:3])
            try:
                await self._act(request, action, job_id, queue, at)
                done += 1
            except ActionRefusedError as error:
                refused = f" {job_id}: {error}."
        left = f" {len(selected) - done} left as they are.{refused}" if done < len(selected) else ""
        self._counts.forget()
        return self._site.back(request, one(form, "back", "jobs"), f"{_VERBS[action]} {plural(done, 'job')}.{left}")

    async def show(self, request: Request) -> Response:
        """Show one job."""
        job = await self._detail(request)
        return self._site.page(
            request,
            "job.html",
            section="jobs",
            job=job,
            reason=None if job.state.is_ended else await self._why(job),
            children=await self._site.jobs.children(job.id),
            key=query(id=job.id, at=job.enqueued_at),
            actions=_actions_on(job.state, is_published=job.is_published),
        )

    async def _why(self, job: JobDetail) -> Reason:
        at = None if job.enqueued_at is None else from_milliseconds(job.enqueued_at)
        return await why(job.id, queue=job.queue, enqueued_at=at, deployment=self._site.deployment)

    async def download(self, request: Request) -> Response:
        """The whole arguments, result or traceback of a job, redacted."""
        job = await self._detail(request)
        parts: dict[str, Any] = {"arguments": job.arguments, "result": job.result, "traceback": job.traceback}
        part = request.query_params.get("part", "")
        if part not in parts:
            raise HTTPException(404, "There is no such part.")
        is_text = part == "traceback"
        body = str(parts[part] or "") if is_text else as_json(parts[part])
        suffix = "txt" if is_text else "json"
        return Response(
            body.encode(errors="replace"),
            media_type="text/plain; charset=utf-8" if is_text else "application/json",
            headers={"content-disposition": f'attachment; filename="{part}.{suffix}"'},
        )

    async def act(self, request: Request) -> Response:
        """Do one action on one job."""
        form = await form_of(request)
        action, job_id = one(form, "action"), outside(form, "id")
        back = f"job?{query(id=job_id, at=one(form, 'at'))}"
        try:
            await self._act(request, action, job_id, outside(form, "queue"), one(form, "at"))
        except ActionRefusedError as error:
            return self._site.back(request, back, f"Left as it is: {error}.")
        self._counts.forget()
        return self._site.back(request, back, f"{_VERBS[action]} {job_id}.")

    async def _act(self, request: Request, action: str, job_id: str, queue: str, at: str) -> None:
        actions = JobActions(self._site.deployment)
        who = {"actor": request.state.visitor.name, "enqueued_at": from_milliseconds(int(at)) if at.isdigit() else None}
        acts: dict[str, Callable[[], Awaitable[None]]] = {
            "retry": lambda: actions.retry(job_id, **who),
            "discard": lambda: actions.discard(job_id, **who),
            "abort": lambda: actions.abort(job_id, queue=queue or None, **who),
            "run": lambda: actions.run_now(job_id, queue=queue or None, **who),
        }
        if action not in acts:
            raise HTTPException(400, "There is no such action.")
        await acts[action]()

    async def _detail(self, request: Request) -> JobDetail:
        params = request.query_params
        at = params.get("at", "")
        job = await self._site.jobs.detail(params.get("id", ""), int(at) if at.isdigit() else None)
        if job is None:
            raise HTTPException(404, "Neither Redis nor the ledger has this job.")
        return job


def _actions_on(state: JobState, *, is_published: bool = True) -> tuple[str, ...]:
    """What an operator can do to a job in this state."""
    match state:
        case JobState.FAILED:
            return ("retry", "discard")
        case JobState.SCHEDULED:
            return ("run", "abort")
        case JobState.WAITING:
            return ("abort",) if is_published else ("run", "abort")
        case JobState.RUNNING:
            return ("abort",)
        case _:
            return ()


def _moment(given: str) -> int | None:
    """A time of a filter in milliseconds: a span before now ("1h"), or a time as ISO 8601 has it, in UTC."""
    if not given:
        return None
    if given in _SPANS:
        when = datetime.now(UTC) - timedelta(minutes=_SPANS[given])
    else:
        when = datetime.fromisoformat(given)
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return round(when.timestamp() * 1000)
