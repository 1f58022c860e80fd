"""``dashboard``: the ASGI application."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from worker.admin.job_lines import Redact
from worker.dashboard.auth import Auth, decided
from worker.dashboard.guard import Guard
from worker.dashboard.pages.audit import AuditPage
from worker.dashboard.pages.failures import FailurePages
from worker.dashboard.pages.jobs import JobPages
from worker.dashboard.pages.metrics import MetricsPage
from worker.dashboard.pages.overview import OverviewPage
from worker.dashboard.pages.queues import QueuePages
from worker.dashboard.pages.schedules import SchedulePages
from worker.dashboard.pages.sign_in import SignIn
from worker.dashboard.pages.workers import WorkerPages
from worker.dashboard.redaction import mask_secrets
from worker.dashboard.site import Site


def dashboard(
    *,
    auth: Auth | None = None,
    redact: Redact = mask_secrets,
    title: str = "Tandem",
    queues: Sequence[str] = (),
) -> Starlette:
    """The dashboard, to be mounted into an application or served by itself.

    ::

        app.mount("/jobs", dashboard(auth=Token(os.environ["DASHBOARD_TOKEN"])))

    It uses the default broker and the default database of the process, as tasks and `enqueue` do.

    Args:
        auth: who may see and who may act: a `Token`, `Basic`, `LoopbackOnly`, or a function of the request that returns
            ``"viewer"``, ``"operator"``, a `Visitor` or None. It may be a coroutine function.
        redact: a function ``(task, part, value) -> value`` that masks secrets in arguments, results, errors and
            tracebacks before they are shown or searched. Default: `mask_secrets`.
        title: the name in the corner of each page, for example that of the project.
        queues: queues to show besides those of ``WORKER_QUEUES``.

    Raises:
        ConfigError: `auth` is missing.
    """
    site = Site(decided(auth), redact, title, queues)
    jobs, failures, queue_pages = JobPages(site), FailurePages(site), QueuePages(site)
    schedules, workers, sign_in = SchedulePages(site), WorkerPages(site), SignIn(site)

    async def not_found(request: Request, error: Exception) -> Response:
        status, reason = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, str(error))
        reason = "There is no such page." if reason == "Not Found" else reason
        return site.page(request, "failed.html", status=status, reason=reason, section="")

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        # A mounted application has no lifespan. Then what runs in the background ends with the event loop.
        yield
        await site.background.close()

    return Starlette(
        lifespan=lifespan,
        routes=[
            Route("/", OverviewPage(site).show),
            Route("/jobs", jobs.index),
            Route("/jobs/act", jobs.act_on_selected, methods=["POST"]),
            Route("/job", jobs.show),
            Route("/job/download", jobs.download),
            Route("/job/act", jobs.act, methods=["POST"]),
            Route("/failures", failures.index),
            Route("/failures/confirm", failures.confirm),
            Route("/failures/act", failures.start, methods=["POST"]),
            Route("/bulk/{run}", failures.progress),
            Route("/bulk/{run}/stop", failures.stop, methods=["POST"]),
            Route("/queues", queue_pages.index),
            Route("/queues/act", queue_pages.act, methods=["POST"]),
            Route("/schedules", schedules.index),
            Route("/schedules/act", schedules.act, methods=["POST"]),
            Route("/workers", workers.index),
            Route("/workers/act", workers.act, methods=["POST"]),
            Route("/audit", AuditPage(site).index),
            Route("/metrics", MetricsPage(site).show),
            Route("/sign-in", sign_in.show, methods=["GET"]),
            Route("/sign-in", sign_in.enter, methods=["POST"]),
            Route("/sign-out", sign_in.leave, methods=["POST"]),
            Route("/theme", sign_in.theme, methods=["POST"]),
            Mount("/static", CachedFiles(packages=[("worker.dashboard", "static")]), name="static"),
        ],
        middleware=[Middleware(Guard, site=site)],
        exception_handlers={HTTPException: not_found},
    )


class CachedFiles(StaticFiles):
    """The style sheet and the script. Browsers ask whether they have changed."""

    def file_response(self, *args: object, **options: object) -> Response:
        response = super().file_response(*args, **options)  # type: ignore[arg-type]
        response.headers["cache-control"] = "no-cache"
        return response
