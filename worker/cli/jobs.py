"""``python -m worker jobs``: what the ledger knows of jobs, and the failed ones run again or put aside.

Named by id, jobs are acted upon at once; in bulk they are counted first, and somebody has to say yes.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Annotated, Any, NamedTuple, Self, TypeVar

import typer
from pydantic_core import to_json
from rich.progress import Progress

from db.text.printable import printable
from worker.broker.broker import Broker
from worker.broker.errors import RedisError
from worker.cli.database import opened
from worker.cli.job_text import as_data, describe_job, describe_lines, describe_tallies
from worker.cli.output import FAILED, MISTAKE, err, explain, out, print_all, printable_text, wide_out
from worker.config import Config
from worker.errors import ConfigError
from worker.ledger.admin import FailureCount, JobAdmin, JobFilter, JobRow, Key, Rejection
from worker.ledger.schema_check import check
from worker.ledger.table import State
from worker.new_job import NewJob

T = TypeVar("T")

_LONG = 600.0  # seconds that one statement may take: to count is to read all of them

app = typer.Typer(help="List, show, retry and discard the jobs in the ledger.", add_completion=False)

Task = Annotated[str | None, typer.Option(metavar="NAME", help="Only jobs of this task.")]
OfQueue = Annotated[str | None, typer.Option("--queue", metavar="NAME", help="Only jobs of this queue.")]
Error = Annotated[str | None, typer.Option(metavar="TEXT", help="Only jobs whose error contains TEXT.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids of failed jobs.")]
All = Annotated[bool, typer.Option("--all", help="All failed jobs.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]


@app.callback(invoke_without_command=True)
def _commands(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        context.get_help()  # prints it
        raise typer.Exit(MISTAKE)


@app.command("list")
def show_list(
    *,
    state: Annotated[State, typer.Option(help="Only jobs in this state.")] = State.FAILED,
    task: Task = None,
    queue: OfQueue = None,
    error: Error = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="Jobs to show. The counts include all.")] = 20,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Show jobs, the latest first, and count them by task and kind of error."""
    which = JobFilter(state, task, queue, error)

    async def read(desk: JobAdmin) -> tuple[list[JobRow], list[FailureCount]]:
        return await desk.lines(which, limit), await desk.tallies(which)

    lines, tallies = _at_desk(Config.load(), read)
    if json:
        typer.echo(to_json(as_data(lines, tallies)))
        return 0
    if lines:
        wide_out().print(describe_lines(lines))
    print_all(describe_tallies(which, len(lines), tallies), out)
    return 0


@app.command()
def show(job_id: Annotated[str, typer.Argument(metavar="ID")]) -> int:
    """Show a job: arguments, times, result or error, and its earlier ends if it was retried."""
    config = Config.load()
    rows = _at_desk(config, lambda desk: desk.all_of(job_id))
    if not rows:
        return explain(f"{printable(job_id)}: the ledger has no such job", FAILED)
    print_all(describe_job(rows, accept_pickle=config.accept_pickle), out)
    return 0


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
    config = Config.load()

    async def act(desk: JobAdmin) -> int:
        chosen = await _chosen(desk, "retry", ids, _bulk(task, queue, error, everything=everything), yes=yes)
        async with _Publisher(config) as publisher:

            async def retry_batch(keys: Sequence[Key]) -> list[Rejection]:
                retried, refusals = await desk.retry(keys, accept_pickle=config.accept_pickle)
                await publisher.publish(retried)
                return refusals

            return await _in_batches("retried", desk, chosen, retry_batch)

    return _at_desk(config, act)


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

    async def act(desk: JobAdmin) -> int:
        chosen = await _chosen(desk, "discard", ids, _bulk(task, queue, error, everything=everything), yes=yes)
        return await _in_batches("discarded", desk, chosen, desk.discard)

    return _at_desk(Config.load(), act)


class _Chosen(NamedTuple):
    """What to act upon, and what of that which was named cannot be."""

    keys: Sequence[Key]
    refusals: Sequence[Rejection] = ()


def _bulk(task: str | None, queue: str | None, error: str | None, *, everything: bool) -> JobFilter | None:
    filtered = (task, queue, error) != (None, None, None)
    if everything and filtered:
        raise ConfigError("--all means all: leave out --task, --queue and --error, or leave out --all")
    return JobFilter(State.FAILED, task, queue, error) if everything or filtered else None


async def _chosen(
    desk: JobAdmin, verb: str, ids: Sequence[str] | None, which: JobFilter | None, *, yes: bool
) -> _Chosen:
    """
    Raises:
        ConfigError: it is not said which, or there is nobody to ask.
        typer.Exit: whoever was asked has said no.
    """
    if (which is None) == (not ids):
        raise ConfigError(f"say which: ids, or --task, --queue, --error or --all. Example: jobs {verb} --task send")
    if which is None:
        return await _by_id(desk, ids or [])
    keys = await desk.keys(which)
    if keys and not yes:
        print_all(describe_tallies(which, 0, await desk.tallies(which)), err)
        if not sys.stdin.isatty():
            raise ConfigError(f"nobody is here to be asked: say --yes to {verb} {len(keys):,} jobs")
        if not await asyncio.to_thread(_agrees, f"{verb.capitalize()} {len(keys):,} jobs?"):
            raise typer.Exit(FAILED)
    return _Chosen(keys)


async def _by_id(desk: JobAdmin, ids: Sequence[str]) -> _Chosen:
    keys, refusals = [], []
    for job_id in dict.fromkeys(ids):
        latest = await desk.latest(job_id)
        if latest is None:
            refusals.append(Rejection(job_id, "the ledger has no such job"))
        elif latest[1] is not State.FAILED:
            refusals.append(Rejection(job_id, f"it has not failed: it is {latest[1]}"))
        else:
            keys.append(latest[0])
    return _Chosen(keys, refusals)


def _agrees(question: str) -> bool:
    try:
        return typer.confirm(question, err=True)
    except typer.Abort:
        return False


async def _in_batches(
    done: str, desk: JobAdmin, chosen: _Chosen, act: Callable[[Sequence[Key]], Awaitable[list[Rejection]]]
) -> int:
    """Act upon all of them, and say of which it was refused; the exit code."""
    refused = _tell_refusals(chosen.refusals)
    with Progress(console=err, transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task(done, total=len(chosen.keys))
        async for batch in desk.batches(chosen.keys):
            refused += _tell_refusals(await act(batch))
            progress.advance(bar, len(batch))
    total = len(chosen.keys) + len(chosen.refusals)
    typer.echo(f"{total - refused:,} {done}" + (f", {refused:,} not" if refused else ""))
    return FAILED if refused else 0


def _tell_refusals(refusals: Sequence[Rejection]) -> int:
    for job_id, why in refusals:
        err.print(printable_text(f"{job_id}: {why}", style="yellow"))
    return len(refusals)


class _Publisher:
    """Sends retried jobs to Redis. Once that does not work it is left to the relay, which does it in a few seconds."""

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
            why = f"Redis does not take them ({error}): the workers will, in a few seconds"
            err.print(printable_text(why, style="yellow"))
            await self._broker.close()
            self._broker = None


def _at_desk(config: Config, act: Callable[[JobAdmin], Coroutine[Any, Any, T]]) -> T:
    """What `act` returns, with the default database open.

    Raises:
        ConfigError: there is none.
        StartupError: it does not answer, or refuses.
        LedgerError: it holds no ledger.
    """

    async def run() -> T:
        async with opened(config, statement_timeout=_LONG) as database:
            await check(database, config.ledger)
            return await act(JobAdmin(config.ledger))

    return asyncio.run(run())
