"""The workers: what each one runs, and quieting, resuming and stopping it."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from worker.dashboard.site import Site, form_of, one


class WorkerPages:
    """The page of all workers."""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def index(self, request: Request) -> Response:
        """List the workers."""
        names = [queue.name for queue in await self._site.queues.list()]
        workers = await self._site.metrics.workers(names)
        return self._site.page(request, "workers.html", section="workers", workers=workers)

    async def act(self, request: Request) -> Response:
        """Quiet, resume or stop a worker."""
        form = await form_of(request)
        worker, name, action = one(form, "worker"), one(form, "name", "The worker"), one(form, "action")
        actor, workers = request.state.visitor.name, self._site.workers
        match action:
            case "quiet":
                is_there = await workers.quiet(worker, actor=actor)
                note = f"{name} claims nothing more. Its running jobs go on."
            case "resume":
                is_there = await workers.resume(worker, actor=actor)
                note = f"{name} claims jobs again."
            case "stop":
                is_there = await workers.stop(worker, actor=actor)
                note = f"{name} drains and ends."
            case _:
                raise HTTPException(400, "There is no such action.")
        return self._site.back(request, "workers", note if is_there else f"{name} does not answer any more.")
