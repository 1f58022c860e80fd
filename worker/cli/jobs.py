"""``tandem jobs``: list, show, retry and discard the jobs in the ledger.

Jobs that are named by id are changed at once. For a filter or --all, the command counts the jobs first and asks for
confirmation.
"""

import asyncio
import shlex
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Annotated, Any, NamedTuple, Self, TypeVar

import typer
from pydantic_core import to_json
from rich.progress import Progress

from db.text.plural import plural
from db.text.printable import printable
from worker.admin.deployment import Deployment
from worker.admin.job_detail import JobDetail
from worker.admin.jobs import Jobs
from worker.broker.broker import Broker
from worker.broker.errors import RedisError
from worker.cli.confirmation import confirm
from worker.cli.database import opened
from worker.cli.deployment import with_deployment
from worker.cli.job_control import abort, explain_job, run_now
from worker.cli.job_run import run_here
from worker.cli.job_text import (
    as_data,
    describe_attempts,
    describe_counts,
    describe_job,
    describe_rows,
    describe_without_row,
)
from worker.cli.job_watch import watch
from worker.cli.output import FAILED, MISTAKE, err, explain, out, print_all, printable_text, wide_out
from worker.config import Config
from worker.errors import ConfigError
from worker.ledger.admin import FailureCount, JobAdmin, JobFilter, JobRow, Key, Rejection
from worker.ledger.schema_check import check
from worker.ledger.table import State
from worker.new_job import NewJob
from worker.process.errors import StartupError
from worker.registry.imports import Importer

T = TypeVar("T")

_STATEMENT_TIMEOUT = 600.0  # seconds, as counting reads every row

app = typer.Typer(help="List, show, explain, watch, retry, discard and abort jobs.", add_completion=False)
app.command("why")(explain_job)
app.command()(abort)
app.command()(run_now)
app.command("run")(run_here)
app.command()(watch)

Task = Annotated[str | None, typer.Option(metavar="NAME", help="Only jobs of this task.")]
OfQueue = Annotated[str | None, typer.Option("--queue", metavar="NAME", help="Only jobs of this queue.")]
Error = Annotated[str | None, typer.Option(metavar="TEXT", help="Only jobs whose error contains TEXT.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids of failed jobs.")]
All = Annotated[bool, typer.Option("--all", help="All failed jobs.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]


@app.callback(invoke_without_command=True)
def _commands(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        context.get_help()  # it prints the help
        raise typer.Exit(MISTAKE)


@app.command("list")
def show_list(
    *,
    state: Annotated[State, typer.Option(help="Only jobs in this state.")] = State.FAILED,
    task: Task = None,
    queue: OfQueue = None,
    error: Error = None,
    limit: Annotated[
        int, typer.Option(metavar="N", min=1, max=1_000_000, help="Jobs to show. The counts include all.")
    ] = 20,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Show jobs, the latest first, and count them by task and kind of error."""
    job_filter = JobFilter(state, task, queue, error)

    async def read(admin: JobAdmin) -> tuple[list[JobRow], list[FailureCount]]:
        return await admin.lines(job_filter, limit), await admin.tallies(job_filter)

    rows, counts = _with_admin(Config.load(), read)
    if json:
        typer.echo(to_json(as_data(rows, counts)))
        return 0
    if rows:
        wide_out().print(describe_rows(rows))
    print_all(describe_counts(job_filter, len(rows), counts), out)
    return 0


@app.command()
def show(job_id: Annotated[str, typer.Argument(metavar="ID")]) -> int:
    """Show a job: arguments, times, result or error, and its earlier ends if it was retried."""
    config = _config()
    if rows := _with_admin(config, lambda admin: admin.all_of(job_id)):
        print_all(describe_job(rows, accept_pickle=config.accept_pickle), out)
        if rows[0]["state"] == State.PENDING and config.redis_url is not None:
            with suppress(StartupError):  # the row is shown; only who has tried the job is not known
                found = with_deployment(lambda deployment: _detail(deployment, job_id), config)
                print_all(describe_attempts(found) if found else (), out)
        return 0
    if config.redis_url is None:
        return explain(f"{printable(job_id)}: the ledger has no such job; to look in Redis, too, set REDIS_URL", FAILED)
    job = with_deployment(lambda deployment: _detail(deployment, job_id), config)
    if job is None:
        why = f"tandem jobs why {shlex.quote(printable(job_id))}"
        return explain(f"{printable(job_id)}: neither the ledger nor Redis has such a job: {why}", FAILED)
    print_all(describe_without_row(job), out)
    return 0


async def _detail(deployment: Deployment, job_id: str) -> JobDetail | None:
    return await Jobs(deployment, redact=_unchanged).detail(job_id)


def _unchanged(_task: str, _part: str, value: Any) -> Any:
    """Mask nothing: a person at a terminal sees arguments as they are, as those of job rows."""
    return value


@app.command()
def retry(
    ids: Ids = None,
    *,
    task: Task = None,
    queue: OfQueue = None,
    error: Error = None,
    everything: All = False,
    yes: Yes = False,
) -> int:
    """Run failed jobs again, with the tries of a new job. They keep their id and their history."""
    config = _config()

    async def act(admin: JobAdmin) -> int:
        chosen = await _choose(admin, "retry", ids, _filter(task, queue, error, everything=everything), yes=yes)
        async with _Publisher(config) as publisher:

            async def retry_batch(keys: Sequence[Key]) -> list[Rejection]:
                retried, rejections = await admin.retry(keys, accept_pickle=config.accept_pickle)
                await publisher.publish(retried)
                return rejections

            return await _in_batches("retried", admin, chosen, retry_batch)

    return _with_admin(config, act)


@app.command()
def discard(
    ids: Ids = None,
    *,
    task: Task = None,
    queue: OfQueue = None,
    error: Error = None,
    everything: All = False,
    yes: Yes = False,
) -> int:
    """Discard failed jobs for good. They cannot be retried, and are deleted like other old jobs."""

    async def act(admin: JobAdmin) -> int:
        chosen = await _choose(admin, "discard", ids, _filter(task, queue, error, everything=everything), yes=yes)
        return await _in_batches("discarded", admin, chosen, admin.discard)

    return _with_admin(Config.load(), act)


def _config() -> Config:
    """Load the settings. If pickles are accepted, make the project importable, as pickles name its classes."""
    config = Config.load()
    if config.accept_pickle:
        Importer.for_project_with(config.registry)
    return config


class _Chosen(NamedTuple):
    """The jobs to change, and the ids that were rejected."""

    keys: Sequence[Key]
    rejections: Sequence[Rejection] = ()


def _filter(task: str | None, queue: str | None, error: str | None, *, everything: bool) -> JobFilter | None:
    filtered = (task, queue, error) != (None, None, None)
    if everything and filtered:
        raise ConfigError("--all excludes the filters: leave out --task, --queue and --error, or leave out --all")
    return JobFilter(State.FAILED, task, queue, error) if everything or filtered else None


async def _choose(
    admin: JobAdmin, verb: str, ids: Sequence[str] | None, job_filter: JobFilter | None, *, yes: bool
) -> _Chosen:
    """Find the jobs to change, and ask for confirmation unless they are named by id.

    Raises:
        ConfigError: neither or both of ids and filter are given, or standard input is not a terminal.
        typer.Exit: the user did not confirm.
    """
    if (job_filter is None) == (not ids):
        raise ConfigError(f"give either ids or --task, --queue, --error or --all. Example: jobs {verb} --task send")
    if job_filter is None:
        return await _by_id(admin, ids or [])
    keys = await admin.keys(job_filter)
    if keys and not yes:
        print_all(describe_counts(job_filter, 0, await admin.tallies(job_filter)), err)
        count = plural(len(keys), "job")
        if not await asyncio.to_thread(confirm, f"{verb.capitalize()} {count}?", f"{verb} {count}"):
            raise typer.Exit(FAILED)
    return _Chosen(keys)


async def _by_id(admin: JobAdmin, ids: Sequence[str]) -> _Chosen:
    keys, rejections = [], []
    for job_id in dict.fromkeys(ids):
        latest = await admin.latest(job_id)
        if latest is None:
            rejections.append(Rejection(job_id, f"the ledger has no such job: tandem jobs why {shlex.quote(job_id)}"))
        elif latest[1] is not State.FAILED:
            rejections.append(Rejection(job_id, f"the job is {latest[1]}, not failed"))
        else:
            keys.append(latest[0])
    return _Chosen(keys, rejections)


async def _in_batches(
    done: str, admin: JobAdmin, chosen: _Chosen, act: Callable[[Sequence[Key]], Awaitable[list[Rejection]]]
) -> int:
    """Change all the jobs in batches and print each rejection; the exit code."""
    rejected = _print_rejections(chosen.rejections)
    with Progress(console=err, transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task(done, total=len(chosen.keys))
        async for batch in admin.batches(chosen.keys):
            rejected += _print_rejections(await act(batch))
            progress.advance(bar, len(batch))
    total = len(chosen.keys) + len(chosen.rejections)
    typer.echo(f"{total - rejected:,} {done}" + (f", {rejected:,} not {done}" if rejected else ""))
    return FAILED if rejected else 0


def _print_rejections(rejections: Sequence[Rejection]) -> int:
    for job_id, why in rejections:
        err.print(printable_text(f"{job_id}: {why}", style="yellow"))
    return len(rejections)


class _Publisher:
    """Sends retried jobs to Redis. After the first failure the relay of a worker does so, within a few seconds."""

    def __init__(self, config: Config) -> None:
        self._broker = None if config.redis_url is None else Broker(config.redis_url, name=config.queue)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        if self._broker is not None:
            await self._broker.close()

    async def publish(self, retried: Sequence[NewJob]) -> None:
        if self._broker is None:
            return
        try:
            await self._broker.publish(retried)
        except (RedisError, OSError) as error:
            note = f"Redis does not accept the jobs ({error}): a worker will publish them when Redis answers"
            err.print(printable_text(note, style="yellow"))
            await self._broker.close()
            self._broker = None


def _with_admin(config: Config, act: Callable[[JobAdmin], Coroutine[Any, Any, T]]) -> T:
    """Open the default database and return what `act` returns.

    Raises:
        ConfigError: there is no default database.
        StartupError: the database does not answer, or refuses.
        LedgerError: the database holds no ledger.
    """

    async def run() -> T:
        async with opened(config, statement_timeout=_STATEMENT_TIMEOUT) as database:
            await check(database, config.ledger)
            return await act(JobAdmin(config.ledger))

    return asyncio.run(run())
