"""The queues: how full they are, and pausing, draining and purging them."""

from datetime import UTC, datetime, timedelta

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from worker.admin.queues import PurgeProgress
from worker.dashboard.site import Site, form_of, one, outside

PAUSES = {"": "until resumed", "15": "15 minutes", "60": "1 hour", "480": "8 hours", "1440": "1 day"}
"""How long a pause may last, by minutes."""


class QueuePages:
    """The page of all queues, and that of a purge."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._purges: dict[str, PurgeProgress] = {}

    async def index(self, request: Request) -> Response:
        """List the queues."""
        queues = await self._site.queues.list()
        workers = await self._site.metrics.workers([queue.name for queue in queues])
        return self._site.page(
            request,
            "queues.html",
            section="queues",
            queues=queues,
            rates=await self._site.overview.rates(queues, workers),
            pauses=PAUSES,
            purges=self._purges,
        )

    async def act(self, request: Request) -> Response:
        """Pause, drain, resume or purge a queue."""
        form = await form_of(request)
        name, action, minutes = outside(form, "queue"), one(form, "action"), one(form, "minutes")
        if not name or minutes not in PAUSES:
            raise HTTPException(400, "The queue is missing, or there is no such time.")
        until = datetime.now(UTC) + timedelta(minutes=int(minutes)) if minutes else None
        actor, queues = request.state.visitor.name, self._site.queues
        match action:
            case "pause":
                await queues.pause(name, actor=actor, until=until)
                note = f"{name} is paused. Running jobs go on."
            case "drain":
                await queues.drain(name, actor=actor, until=until)
                note = f"{name} drains: jobs that are due by now still start."
            case "resume":
                was_paused = await queues.resume(name, actor=actor)
                note = f"{name} goes on." if was_paused else f"{name} was not paused."
            case "purge":
                self._site.background.start(self._purge(name, actor))
                note = f"The waiting jobs of {name} are being removed."
            case _:
                raise HTTPException(400, "There is no such action.")
        return self._site.back(request, "queues", note)

    async def _purge(self, name: str, actor: str) -> None:
        async for progress in self._site.queues.purge(name, actor=actor):
            self._purges[name] = progress
