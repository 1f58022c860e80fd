"""``tandem jobs watch``: follow one job until it ends."""

import asyncio
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Protocol, Self

import typer
from pydantic_core import to_json
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as ProgressBar

from db.text.printable import printable
from worker.admin.deployment import Deployment
from worker.admin.why import Reason, ReasonKind, why
from worker.cli.deployment import with_deployment
from worker.cli.job_control import STYLES
from worker.cli.output import FAILED, explain, out, printable_text
from worker.context import Progress
from worker.errors import ResultNotFoundError
from worker.job import Job

_POLL = 1.0  # seconds between two looks at the state; progress is shown as it comes
_SETTLING = 3.0  # seconds: a worker writes its latest ended jobs once a second
_ENDED = {ReasonKind.DONE, ReasonKind.FAILED, ReasonKind.ABORTED, ReasonKind.DISCARDED, ReasonKind.EXPIRED}


def watch(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the job.")],
    *,
    queue: Annotated[
        str | None, typer.Option("--queue", metavar="NAME", help="Queue of the job, if WORKER_QUEUES lacks it.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each change.")] = False,
) -> int:
    """Follow the state and the progress of a job until it ends.

    The exit code is 0 if the job succeeded, and 1 if it did not. Ctrl-C ends the watch, not the job.

    \b
    tandem jobs watch 3f2a
    tandem jobs watch $(tandem enqueue import_rows --arg rows:='[1, 2, 3]')
    """
    with _JsonLines() if json else _Text() as output:
        end = with_deployment(lambda deployment: _Watch(deployment, job_id, queue, output).until_end())
    if end.kind in _ENDED:
        return 0 if end.kind is ReasonKind.DONE else FAILED
    if end.kind is ReasonKind.UNKNOWN and end.enqueued_at is None:
        return explain(f"{job_id}: no such job; {end.next_step}", FAILED)
    return explain(f"{job_id}: it has ended, and it is not known how: its result was not kept", FAILED)


class _Watch:
    """Shows each change of one job.

    Args:
        queue: the queue of the job (default: it is searched for).
    """

    def __init__(self, deployment: Deployment, job_id: str, queue: str | None, output: "_Output") -> None:
        self._deployment = deployment
        self._job_id = job_id
        self._queue = queue
        self._enqueued_at: datetime | None = None
        self._output = output
        self._kind: ReasonKind | None = None
        self._attempt: int | None = None
        self._looking = asyncio.Lock()

    async def until_end(self) -> Reason:
        """Follow the job; how it ended. The reason is `UNKNOWN` if there is no such job."""
        reason = await self._ask()
        if reason.kind is ReasonKind.UNKNOWN:
            return reason
        # From here on it is this job, though its id may be used again.
        self._queue, self._enqueued_at = reason.queue, reason.enqueued_at
        await self._look()
        following = asyncio.create_task(self._follow_progress())
        try:
            while not following.done():
                await asyncio.wait([following], timeout=_POLL)
                if not following.done():
                    await self._look()
            following.result()
        finally:
            following.cancel()
        return await self._end(reason)

    async def _follow_progress(self) -> None:
        job = Job[Any](
            self._job_id, queue_name=self._queue, broker=self._deployment.broker, enqueued_at=self._enqueued_at
        )
        with suppress(ResultNotFoundError):  # it has ended since, and its result is not kept
            async for progress in job.progress():
                await self._look()  # first, so that no progress of a waiting job is shown
                self._output.progress(self._job_id, progress)

    async def _end(self, found: Reason) -> Reason:
        """How the job ended, as soon as that is known; else `found`, which says that it existed."""
        deadline = time.monotonic() + _SETTLING
        while (reason := await self._ask()).kind not in _ENDED:
            if time.monotonic() > deadline:
                return found
            await asyncio.sleep(_POLL / 10)
        self._show_change(reason)
        return reason

    async def _look(self) -> None:
        async with self._looking:
            reason = await self._ask()
            if reason.kind not in _ENDED and reason.kind is not ReasonKind.UNKNOWN:  # the end is shown last
                self._show_change(reason)

    async def _ask(self) -> Reason:
        return await why(self._job_id, queue=self._queue, enqueued_at=self._enqueued_at, deployment=self._deployment)

    def _show_change(self, reason: Reason) -> None:
        """Show the state if it is another one, or that of another attempt."""
        attempt = reason.evidence.get("attempt", self._attempt)
        if (reason.kind, attempt) != (self._kind, self._attempt or attempt):
            self._output.state(reason)
        self._kind, self._attempt = reason.kind, attempt


class _Output(Protocol):
    """Prints what changes."""

    def state(self, reason: Reason) -> None: ...

    def progress(self, job_id: str, progress: Progress) -> None: ...


class _JsonLines:
    """A line of JSON for each change, with the same fields in each."""

    def __enter__(self) -> Self:
        self._kind: ReasonKind | None = None
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def state(self, reason: Reason) -> None:
        self._kind = reason.kind
        self._print(reason.job_id, datetime.now(UTC), sentence=reason.sentence)

    def progress(self, job_id: str, progress: Progress) -> None:
        shown = {name: value for name, value in progress._asdict().items() if name != "at"}
        self._print(job_id, progress.at, progress=shown)

    def _print(self, job_id: str, at: datetime, *, sentence: str | None = None, progress: Any = None) -> None:
        line = {"job_id": job_id, "at": at, "state": self._kind, "sentence": sentence, "progress": progress}
        typer.echo(to_json(line))


class _Text:
    """A line for each change of the state. On a terminal the progress is a bar, elsewhere a line for each report."""

    def __enter__(self) -> Self:
        columns = (TextColumn("  "), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
        self._bar = ProgressBar(*columns, console=out, transient=True, disable=not out.is_terminal)
        self._task: TaskID | None = None
        self._bar.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._bar.stop()

    def state(self, reason: Reason) -> None:
        if reason.kind in _ENDED:
            self._bar.stop()
        kind = (reason.kind.replace("_", " "), STYLES.get(reason.kind, "yellow"))
        out.print(printable_text((f"{datetime.now(UTC):%H:%M:%S}  ", "dim"), kind, f"  {reason.sentence}"))

    def progress(self, job_id: str, progress: Progress) -> None:  # noqa: ARG002 - the lines have one job
        total = "" if progress.total is None else f" of {progress.total:g}"
        if not out.is_terminal:
            text = f"{progress.at:%H:%M:%S}  {progress.done:g}{total}  {progress.note}".rstrip()
            out.print(printable_text(text))
            return
        if self._task is None:
            self._task = self._bar.add_task("")
        self._bar.update(
            self._task, completed=progress.done, total=progress.total, description=printable(progress.note)
        )
