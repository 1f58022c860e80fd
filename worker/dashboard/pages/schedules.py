"""The scheduled tasks: their next and last cron slots, and running and pausing them."""

import asyncio
from datetime import UTC, datetime, timedelta

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from worker.admin.schedules import ScheduleAdmin
from worker.dashboard.pages.queues import PAUSES
from worker.dashboard.site import Site, form_of, one, outside
from worker.errors import RegistryError


class SchedulePages:
    """The page of all scheduled tasks."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._admin: ScheduleAdmin | None = None

    async def index(self, request: Request) -> Response:
        """List the schedules."""
        problem = ""
        try:
            schedules = await (await self._schedules()).list()
        except RegistryError as error:
            schedules, problem = [], "; ".join(map(str, error.problems))
        return self._site.page(
            request, "schedules.html", section="schedules", schedules=schedules, problem=problem, pauses=PAUSES
        )

    async def act(self, request: Request) -> Response:
        """Run, pause or resume a schedule."""
        form = await form_of(request)
        task, action, minutes = outside(form, "task"), one(form, "action"), one(form, "minutes")
        if minutes not in PAUSES:
            raise HTTPException(400, "There is no such time.")
        until = datetime.now(UTC) + timedelta(minutes=int(minutes)) if minutes else None
        schedules, actor = await self._schedules(), request.state.visitor.name
        try:
            match action:
                case "run":
                    job = await schedules.run_now(task, actor=actor)
                    note = f"Enqueued {task} as job {job.job_id}."
                case "pause":
                    await schedules.pause(task, actor=actor, until=until)
                    note = f"{task} is paused. Its slots are skipped meanwhile."
                case "resume":
                    await schedules.resume(task, actor=actor)
                    note = f"{task} goes on with its next slot."
                case _:
                    raise HTTPException(400, "There is no such action.")
        except KeyError:
            raise HTTPException(404, "There is no such scheduled task.") from None
        return self._site.back(request, "schedules", note)

    async def _schedules(self) -> ScheduleAdmin:
        """The schedules of the registry. It is loaded at the first visit, in a thread, as it imports every task."""
        if self._admin is None:
            tasks = await asyncio.to_thread(self._site.load_tasks)
            self._admin = ScheduleAdmin(tasks, self._site.deployment)
        return self._admin
