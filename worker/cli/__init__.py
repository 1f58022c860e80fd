"""The command line: `tandem`, or `python -m worker`.

A command returns its exit code: 0, 1, or 2 for a mistake of the user's. An error is one line.

Only `worker.__main__` may import it. Code that is useful without a terminal must not be put here.
"""

import asyncio
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from pydantic_core import to_json
from rich.text import Text

from db.text.printable import printable
from worker.broker.broker import Broker
from worker.broker.errors import AuthenticationError, RedisError, ResponseError
from worker.cli.audit import audit
from worker.cli.child_process import ParentLink
from worker.cli.dashboard import show_dashboard
from worker.cli.doctor import doctor
from worker.cli.enqueue import enqueue
from worker.cli.jobs import app as jobs_app
from worker.cli.output import FAILED, MISTAKE, err, explain, out, print_all, printable_text, wide_out
from worker.cli.queues import app as queues_app
from worker.cli.schedules import app as schedules_app
from worker.cli.supervisor import supervise
from worker.cli.task_list import describe_problems, describe_tasks
from worker.cli.top import top
from worker.cli.worker_records import WorkerRecord, read_worker_records
from worker.cli.worker_table import describe_workers
from worker.cli.workers import app as workers_app
from worker.config import Config, URLMissingError
from worker.embedded import EmbeddedServerError
from worker.embedded.local_servers import (
    USE_LOCAL_SERVERS,
    alembic_message,
    as_shell,
    await_alembic,
    find,
    local_servers,
    message,
)
from worker.errors import ConfigError, LedgerError, RegistryError
from worker.process.errors import StartupError
from worker.process.served import describe, queues_not_served_here, unserved
from worker.process.standalone import work
from worker.process.stop_signals import leave_on_signal
from worker.registry import Registry, load

__all__ = ["main"]

_REDIS_TIMEOUT = 3.0  # seconds for Redis to return the workers' records
_PROGRAM = "tandem" if Path(sys.argv[0]).stem == "tandem" else "python -m worker"

app = typer.Typer(
    help="Run and inspect Tandem's background jobs. `arq worker.Settings` also starts a worker.",
    add_completion=True,
    pretty_exceptions_enable=False,
)
_RUN, _SEE, _ACT = "Run", "See", "See and act"
app.add_typer(jobs_app, name="jobs", rich_help_panel=_ACT)
app.add_typer(queues_app, name="queues", rich_help_panel=_ACT)
app.add_typer(workers_app, name="workers", rich_help_panel=_ACT)
app.add_typer(schedules_app, name="schedules", rich_help_panel=_ACT)
app.command(rich_help_panel=_RUN)(enqueue)
app.command("dashboard", rich_help_panel=_SEE)(show_dashboard)
app.command(rich_help_panel=_SEE)(top)
app.command(rich_help_panel=_SEE)(doctor)
app.command(rich_help_panel=_SEE)(audit)

Queues = Annotated[
    str | None,
    typer.Option(metavar="A,B,C", help="Queues, the most urgent first. Default: WORKER_QUEUES, or WORKER_QUEUE."),
]


def main() -> None:
    """Run the command that the process was started with."""
    sys.exit(_exit_code())


def _exit_code() -> int:
    try:
        return app(prog_name=_PROGRAM, standalone_mode=False) or 0
    except typer.TyperException as mistake:
        return explain(printable(" ".join(mistake.format_message().split())), MISTAKE)
    except RegistryError as error:
        print_all(describe_problems(Config.load().registry, error), err)
        return MISTAKE
    except URLMissingError as error:
        return explain("\n".join((str(error), *_local_servers())), MISTAKE)
    except (ConfigError, EmbeddedServerError) as error:
        return explain(str(error), MISTAKE)
    except (StartupError, LedgerError) as error:
        return explain(str(error), FAILED)


def _local_servers() -> Iterator[str]:
    """A line on how to use the servers that a run of this project has started, if there are any."""
    if find() is not None:
        yield f"To use the servers that this project's run has started, type: {USE_LOCAL_SERVERS}"


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"tandem {version('tandem-jobs')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _commands(
    context: typer.Context,
    *,
    version: Annotated[  # noqa: ARG001 - its callback does it
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        context.get_help()  # it prints the help
        raise typer.Exit(MISTAKE)


@app.command(rich_help_panel=_SEE)
def check(
    registry: Annotated[
        str | None,
        typer.Option(metavar="MODULE", help="Module that lists the tasks. Default: WORKER_REGISTRY."),
    ] = None,
    arq: Annotated[
        str | None,
        typer.Option(metavar="CLASS", help="Show what arq's settings class becomes, instead: app.WorkerSettings."),
    ] = None,
) -> int:
    """Import and show every task of the registry, or show every problem."""
    if arq is not None:
        from worker.cli.arq_check import check_arq  # noqa: PLC0415 - imports arq's worker

        _warn_of_typos()
        return check_arq(arq)
    config = Config.load() if registry is None else Config.load(registry=registry)
    _warn_of_typos()
    try:
        loaded = load(config.registry)
    except RegistryError as error:
        print_all(describe_problems(config.registry, error), err)
        return FAILED
    print_all(describe_tasks(loaded, config), out)
    print_all((printable_text(line, style="yellow") for line in _unserved(loaded, config)), err)
    return 0


class Under(StrEnum):
    """The kind of parent process that started this one."""

    SUPERVISOR = "supervisor"
    WATCH = "watch"


@app.command(rich_help_panel=_RUN)
def run(
    processes: Annotated[int, typer.Option(metavar="N", min=1, help="Number of worker processes.")] = 1,
    queues: Queues = None,
    concurrency: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Jobs that each process runs at once. Default: WORKER_CONCURRENCY."),
    ] = None,
    burst: Annotated[bool, typer.Option("--burst", help="End when all queues are empty and no job runs.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Drain and restart when a Python file in DIR changes.")
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", exists=True, file_okay=False, help="Folder to watch. Default: current folder."),
    ] = None,
    under: Annotated[Under | None, typer.Option(hidden=True)] = None,
) -> int:
    """Run workers without arq's command.

    SIGTERM or Ctrl-C lets running jobs finish for WORKER_GRACE seconds. A second signal interrupts them.

    If DATABASE_URL or REDIS_URL is not set, this command starts an empty server for as long as it runs.

    The exit code is 0 after an orderly end, 1 after a failure, and 2 after a mistake in a setting or a task.
    With --burst it is 0 only if the queues were empty.
    """
    _check_watch(watch=watch, folder=folder)
    leave_on_signal(until_empty=burst)
    parent = None if under is None else ParentLink()
    _set_for_children(WORKER_QUEUES=queues, WORKER_CONCURRENCY=concurrency)
    config = Config.load()
    if parent is None:
        _warn_of_typos()
    else:
        parent.follow(config.grace)
    with local_servers(config) as urls:
        if (note := message(config)) is not None:
            err.print(Text(note))
        if (note := alembic_message(config)) is not None:
            err.print(Text(note))
            await_alembic(config, urls)
        _set_for_children(DATABASE_URL=urls.database, REDIS_URL=urls.redis)
        config = Config.load()
        if watch:
            return _watch(folder or Path(), processes, burst=burst)
        if processes > 1:
            return supervise(config, processes, until_empty=burst)
        return work(
            config,
            until_empty=burst,
            log_as=config.id if under is Under.SUPERVISOR else None,
            started=None if parent is None else parent.report_started,
        )


@app.command(rich_help_panel=_SEE)
def health(
    queues: Queues = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Show the healthy workers. The exit code is 0 only if there is one."""
    config = Config.load() if queues is None else Config.load(queues=queues)
    try:
        workers = asyncio.run(_workers(config.require_redis_url(), config.queue_names))
    except (AuthenticationError, ResponseError) as error:
        return explain(printable(f"REDIS_URL: the server refuses: {error}"), FAILED)
    except (RedisError, OSError) as error:
        return explain(printable(f"REDIS_URL: no answer ({error}); is the server up?"), FAILED)
    if json:
        typer.echo(to_json({"workers": {worker_id: record.model_dump() for worker_id, record in workers.items()}}))
    elif workers:
        wide_out().print(describe_workers(workers))
    return 0 if workers else explain(f"no healthy worker serves {', '.join(config.queue_names)}", FAILED)


@app.command(rich_help_panel=_RUN)
def exporter(
    port: Annotated[int, typer.Option(metavar="PORT", min=1, max=65535, help="Port to serve on.")] = 9465,
    queues: Queues = None,
) -> int:
    """Serve the metrics of all queues, workers and job rows to Prometheus.

    One exporter is enough. Each worker serves its own metrics on WORKER_METRICS_PORT.
    """
    from worker.cli.exporter import export  # noqa: PLC0415 - other commands do not need it

    config = Config.load() if queues is None else Config.load(queues=queues)
    config.require_redis_url()
    err.print(Text(f"metrics: http://localhost:{port}/metrics"))
    return export(config, port)


@app.command(rich_help_panel=_RUN)
def migrate(
    *,
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL for a new table, without a connection.")] = False,
    adopt: Annotated[bool, typer.Option("--adopt", help="Take over a table that other migrations have made.")] = False,
    release: Annotated[bool, typer.Option("--release", help="Leave the table to other migrations.")] = False,
) -> int:
    """Create the ledger's table in the default database, or update it.

    Run this command at each deploy, before the workers start. It does nothing if the table is up to date.
    """
    from worker.cli.migration import migrated, released, sql_of  # noqa: PLC0415 - Alembic takes a while to import

    if sql + adopt + release > 1:
        raise ConfigError("give only one of --sql, --adopt and --release")
    config = Config.load()
    if sql:
        typer.echo(sql_of(config), nl=False)
    else:
        typer.echo(released(config) if release else migrated(config, adopt=adopt))
    return 0


@app.command(rich_help_panel=_RUN)
def env() -> int:
    """Print the URLs of the servers that `run` or the demo has started in this folder.

    For the shell: eval $(python -m worker env)
    """
    urls = find()
    if urls is None:
        return explain(
            "no servers of this project run: unset DATABASE_URL or REDIS_URL, and type 'python -m worker run'", FAILED
        )
    typer.echo(as_shell(urls))
    return 0


def _unserved(registry: Registry, config: Config) -> Sequence[str]:
    """A line for each task queue that has no worker, or may have none if Redis does not answer."""
    elsewhere = queues_not_served_here(registry.tasks.values(), config)
    if not elsewhere:
        return ()
    if config.redis_url is not None:
        with suppress(RedisError, OSError):
            return tuple(describe(asyncio.run(_without_worker(config.redis_url, elsewhere)), config))
    return tuple(describe(elsewhere, config, is_known=False))


async def _without_worker(url: str, elsewhere: Mapping[str, Sequence[str]]) -> Mapping[str, Sequence[str]]:
    broker = Broker(url)
    try:
        async with asyncio.timeout(_REDIS_TIMEOUT):
            return await unserved(elsewhere, broker)
    finally:
        await broker.close()


async def _workers(url: str, names: Sequence[str]) -> dict[str, WorkerRecord]:
    broker = Broker(url)
    try:
        return await read_worker_records(broker, names)
    finally:
        await broker.close()


def _check_watch(*, watch: bool, folder: Path | None) -> None:
    if folder is not None and not watch:
        raise ConfigError(f"DIR needs --watch. Example: {_PROGRAM} run --watch {folder}")
    if watch and find_spec("watchfiles") is None:
        raise ConfigError("--watch needs the package watchfiles: pip install 'tandem-jobs[watch]'")


def _watch(folder: Path, processes: int, *, burst: bool) -> int:
    from worker.cli.watch import watch  # noqa: PLC0415 - watchfiles need not be installed

    until_empty = ["--burst"] if burst else []
    return watch(folder, ["run", f"--under={Under.WATCH}", f"--processes={processes}", *until_empty])


def _set_for_children(**settings: object) -> None:
    """Put options into the environment, for this process and its children."""
    os.environ.update({name: str(value) for name, value in settings.items() if value is not None})


def _warn_of_typos() -> None:
    for typo in Config.likely_typos():
        err.print(printable_text(typo, style="yellow"))
