"""The command line: `tandem`, or `python -m worker`.

A command returns its exit code: 0, 1, or 2 for a mistake of the user's. An error is one line. A command is imported
when it is called, so that the help and the shell's completion do not wait for the libraries of all commands.

Only `worker.__main__` may import it. Code that is useful without a terminal must not be put here.
"""

import errno
import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from worker.cli.lazy_group import LazyCommand, LazyGroup
from worker.cli.program import PROGRAM

__all__ = ["main"]

_MISTAKE = 2  # as worker.cli.output.MISTAKE, which needs rich
_RUN, _SEE, _ACT = "Run", "See", "See and act"

COMMANDS = (
    LazyCommand("enqueue", "worker.cli.enqueue", "enqueue", _RUN, "Enqueue a job, and print its id."),
    LazyCommand("run", "worker.cli.run", "run", _RUN, "Run workers without arq's command."),
    LazyCommand(
        "exporter",
        "worker.cli.exporter",
        "exporter",
        _RUN,
        "Serve the metrics of all queues, workers and job rows to Prometheus.",
    ),
    LazyCommand(
        "migrate",
        "worker.cli.migration",
        "migrate",
        _RUN,
        "Create the ledger's table in the default database, or update it.",
    ),
    LazyCommand(
        "env",
        "worker.cli.env",
        "env",
        _RUN,
        "Print the URLs of the servers that `run` or the demo has started in this folder.",
    ),
    LazyCommand(
        "dashboard",
        "worker.cli.dashboard",
        "show_dashboard",
        _SEE,
        "Serve the dashboard: jobs, failures, queues, schedules and workers.",
    ),
    LazyCommand(
        "top", "worker.cli.top", "top", _SEE, "Show the queues, the workers and their rates, live. Ctrl-C ends it."
    ),
    LazyCommand(
        "doctor",
        "worker.cli.doctor",
        "doctor",
        _SEE,
        "Check Redis, PostgreSQL, the registry and the workers, and say what to type.",
    ),
    LazyCommand("audit", "worker.cli.audit", "audit", _SEE, "Show who did what, the latest first."),
    LazyCommand(
        "check",
        "worker.cli.check",
        "check",
        _SEE,
        "Import and show every task of the registry, or show every problem.",
    ),
    LazyCommand(
        "health",
        "worker.cli.health",
        "health",
        _SEE,
        "Show the healthy workers. The exit code is 0 only if there is one.",
    ),
    LazyCommand("jobs", "worker.cli.jobs", "app", _ACT, "List, show, explain, watch, retry, discard and abort jobs."),
    LazyCommand("queues", "worker.cli.queues", "app", _ACT, "List, pause, resume, drain and purge queues."),
    LazyCommand("workers", "worker.cli.workers", "app", _ACT, "List, quiet, resume and stop workers."),
    LazyCommand("schedules", "worker.cli.schedules", "app", _ACT, "List, run, pause and resume schedules."),
)
"""All commands, in the order of the help. The last four are groups."""


class _Commands(LazyGroup):
    lazy_commands = COMMANDS


app = typer.Typer(
    cls=_Commands,
    help="Run and inspect Tandem's background jobs. `arq worker.Settings` also starts a worker.",
    add_completion=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command that the process was started with."""
    sys.exit(_flushed(_exit_code()))


def _flushed(exit_code: int) -> int:
    """Write what is left of the output; the exit code. At its own end Python would print a traceback."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # What cannot be written must not be tried again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader has seen enough
            return exit_code
        print(f"standard output: {error.strerror}", file=sys.stderr)  # noqa: T201 - as little as possible can fail
        return exit_code or 1
    return exit_code


def _exit_code() -> int:
    for argument in sys.argv[1:]:
        if not _is_text(argument):  # no server could take it
            from db.text.printable import printable  # noqa: PLC0415 - as below
            from worker.cli.output import explain  # noqa: PLC0415 - as below

            return explain(f"{printable(argument)}: this argument is no valid text: write it in UTF-8", _MISTAKE)
    try:
        return app(prog_name=PROGRAM, standalone_mode=False) or 0
    except typer.TyperException as mistake:
        from db.text.printable import printable  # noqa: PLC0415 - the help does not need SQLAlchemy, which db imports
        from worker.cli.output import explain  # noqa: PLC0415 - nor rich's console, where nothing is printed

        context = getattr(mistake, "ctx", None)
        command = PROGRAM if context is None else context.command_path
        message = " ".join(mistake.format_message().split()).removesuffix(".")
        return explain(printable(f"{message}; see '{command} --help'"), _MISTAKE)
    except OSError as error:
        if error.filename is not None or error.errno != errno.ENOSPC:
            raise
        return 1  # the output cannot be written, as `_flushed` says
    except Exception as error:
        from worker.cli.failures import explain_error  # noqa: PLC0415 - the errors of all that commands import

        exit_code = explain_error(error)
        if exit_code is None:
            raise
        return exit_code


def _is_text(argument: str) -> bool:
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


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
        raise typer.Exit(_MISTAKE)
