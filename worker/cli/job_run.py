"""``tandem jobs run``: run one job in this process, under a debugger if you like."""

import asyncio
import logging
import shlex
import traceback
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import typer
from rich.text import Text

from db.text.printable import printable, printable_lines
from worker.broker.broker import Broker
from worker.broker.errors import RedisError
from worker.cli.database import opened
from worker.cli.output import FAILED, err, out, printable_text
from worker.config import Config
from worker.engine.outcome import Outcome, OutcomeKind
from worker.errors import PayloadError
from worker.ledger.admin import JobAdmin
from worker.ledger.schema_check import check
from worker.ledger.table import State
from worker.message import Message
from worker.process.errors import StartupError
from worker.process.single_run import run_single
from worker.registry import Registry, load

_A_DAY = 24 * 3600.0  # seconds that a debugger may stop a job for
_COMPLETED = (OutcomeKind.COMPLETED, OutcomeKind.DUPLICATE)


class _Job(NamedTuple):
    message: Message
    queue: str
    tries: int
    state: State | None
    """The state of its row. None if it has none."""


def run_here(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the job.")],
    *,
    commit: Annotated[
        bool, typer.Option("--commit", help="Commit, and set the job done. Only for failed jobs.")
    ] = False,
) -> int:
    """Run a job in this process, and roll it back unless --commit is given.

    It may be in any state, as long as its arguments are known. A done job has them only with
    WORKER_KEEP_ARGUMENTS. It has no timeout, so breakpoint() works in it.
    What the task does outside of its session happens. What it commits itself stays committed.

    \b
    tandem jobs run 3f2a                  run it, show the result or the traceback, and roll back
    tandem jobs run 3f2a --commit         run a failed job here for good
    python -m pdb -m worker jobs run 3f2a
    """
    config = Config.load()
    registry = load(config.registry)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    job, outcome = asyncio.run(_run(config, registry, job_id, commit=commit))
    return _show(job, outcome, commit=commit)


async def _run(config: Config, registry: Registry, job_id: str, *, commit: bool) -> tuple[_Job, Outcome]:
    async with opened(config, statement_timeout=_A_DAY, idle_in_transaction_timeout=_A_DAY) as database:
        await check(database, config.ledger)
        job = await _find(config, job_id)
        if job.message.task not in registry.tasks:
            raise StartupError(printable(f"{job_id}: the registry has no task {job.message.task}"))
        if commit and job.state is not State.FAILED:
            raise StartupError(
                printable(f"{job_id} {_state(job)}: --commit is for failed jobs, as a worker may run any other one")
            )
        return job, await run_single(config, registry, job.message, job.queue, tries=job.tries, commit=commit)


async def _find(config: Config, job_id: str) -> _Job:
    """The job's message, from its last row or from Redis.

    Raises:
        StartupError: there is no such job, or its arguments are not known any more or cannot be read.
    """
    rows = await JobAdmin(config.ledger).all_of(job_id)
    try:
        if rows and rows[0]["payload"] is not None:
            message = Message.decode(job_id, rows[0]["payload"], accept_pickle=config.accept_pickle)
            return _Job(message, rows[0]["queue"], rows[0]["tries"], State(rows[0]["state"]))
        if not rows and (found := await _in_redis(config, job_id)) is not None:
            return found
    except PayloadError as error:
        raise StartupError(printable(f"{job_id}: its arguments cannot be read: {error}")) from None
    raise StartupError(printable(f"{job_id}: {_why_not(job_id, rows)}"))


async def _in_redis(config: Config, job_id: str) -> _Job | None:
    broker = Broker(config.require_redis_url(), name=config.queue)
    try:
        for queue in config.queue_names:
            payload = (await broker.status(queue, job_id)).payload
            if payload is not None:
                message = Message.decode(job_id, payload, accept_pickle=config.accept_pickle)
                return _Job(message, queue, 0, None)
    except (RedisError, OSError) as error:
        raise StartupError(f"REDIS_URL: no answer ({error}); is the server up?") from None
    finally:
        await broker.close()
    return None


def _why_not(job_id: str, rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return f"no such job: tandem jobs why {shlex.quote(job_id)}"
    if rows[0]["state"] == State.DONE:
        return "it is done, and its arguments were dropped (WORKER_KEEP_ARGUMENTS): enqueue a new job"
    return f"its arguments are not kept, it is {rows[0]['state']}"


def _state(job: _Job) -> str:
    return "has no row" if job.state is None else f"is {job.state}"


def _show(job: _Job, outcome: Outcome, *, commit: bool) -> int:
    end = "committed" if commit and outcome.kind in _COMPLETED else "rolled back"
    if outcome.kind in _COMPLETED:
        out.print(printable_text((job.message.job_id, "bold"), f"  {outcome.kind.value}, {end}"))
        out.print(printable_text(("  result  ", "dim"), outcome.result.decode(errors="replace")))
        return 0
    if outcome.error is not None:
        lines = "".join(traceback.format_exception(outcome.error))
        err.print(Text(printable_lines(lines.rstrip())))
    again = f", and would run again in {outcome.delay:g} s" if outcome.kind is OutcomeKind.RETRIED else ""
    out.print(printable_text((job.message.job_id, "bold"), (f"  {outcome.kind.value}", "red"), f", {end}{again}"))
    return FAILED
