"""The demo, a census of a folder: ``make demo``, or ``python -m examples.demo [folder]``.

1. It starts Redis and PostgreSQL, unless REDIS_URL and DATABASE_URL are set, and then ``arq worker.Settings``.
2. It enqueues `scan_folder`, as `examples/web.py` does, and shows the progress of the jobs. Meanwhile it kills the
   worker once.
3. It prints the census, and checks that the rows in the database are those of the jobs that succeeded.
4. With ``make demo KEEP=1`` it then also starts the web application and the dashboard, and all stay until Ctrl-C.
5. It stops everything that it started, also after Ctrl-C. If the demo itself is killed, watchdogs do so.
"""

import argparse
import asyncio
import os
import secrets
import signal
import sys
import sysconfig
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

import db
from examples.background_process import WORKER, BackgroundProcess, ProcessDiedError
from examples.findings import Outcomes, compare, read_census
from examples.progress import Counts, show
from examples.report import print_census, print_check, print_failed
from examples.served import web_and_dashboard
from tasks.census import scan_folder
from tasks.models import Scan, create_tables
from worker import Broker, Job
from worker.config import Config
from worker.embedded import EmbeddedServerError, Urls
from worker.embedded.local_servers import local_servers, message
from worker.errors import ConfigError, LedgerError
from worker.ledger.migrate import upgrade

_INTERRUPTED, _TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
_PAUSE = 0.2  # seconds between two reads of the progress
_TIMEOUT = 330.0  # seconds without progress: somewhat more than one job may take (WORKER_JOB_TIMEOUT)

# Ignores FORCE_COLOR, which many CI systems set, as a log is not a terminal.
console = Console(highlight=False, soft_wrap=True, force_terminal=None if sys.stdout.isatty() else False)


class DemoError(Exception):
    """The demo cannot start or continue. The message is one line."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def main() -> int:
    """Run the demo; the exit code: 0, 1 if a check or the work failed, 2 if the demo could not start."""
    # A shell makes background processes ignore Ctrl-C. Here Ctrl-C always stops the demo and cleans up.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    given = _arguments()
    folder = _folder(given.folder)
    try:
        config = Config.load()
        console.print(message(config) or "DATABASE_URL and REDIS_URL are set: this run uses those servers.")
        with local_servers(config) as urls:
            return asyncio.run(_demo(folder, urls, keep=given.keep))
    except (ConfigError, EmbeddedServerError) as error:
        return _explain(str(error), 2)
    except DemoError as error:
        return _explain(str(error), error.exit_code)
    except ProcessDiedError as error:
        return _explain(str(error), 1)
    except (db.DbError, SQLAlchemyError, RedisError) as error:
        return _explain(f"The demo failed: {_first_line(error)}", 1)
    except KeyboardInterrupt:
        return _explain("Interrupted. The worker and the servers that the demo started are stopped.", _INTERRUPTED)
    except asyncio.CancelledError:
        return _explain("Terminated. The worker and the servers that the demo started are stopped.", _TERMINATED)


async def _demo(folder: Path, urls: Urls, *, keep: bool) -> int:
    _treat_terminate_as_cancel()
    async with _connected(urls) as broker:
        settings = _settings(urls, broker)
        async with BackgroundProcess("worker", WORKER, settings) as worker:
            console.print(f"Started a worker, arq worker.Settings (process {worker.pid}).")
            result = await worker.while_it_runs(_census(folder, worker))
            if keep:
                await worker.while_it_runs(_serve(settings))
            return result


async def _serve(settings: Mapping[str, str]) -> None:
    """Run the web application and the dashboard beside the worker, for ever."""
    async with web_and_dashboard(settings) as addresses:
        console.print()
        for name, address in addresses.items():
            console.print(f"The {name}: {address}")
        console.print("The worker goes on. Ctrl-C ends everything.")
        await asyncio.Event().wait()


def _settings(urls: Urls, broker: Broker) -> dict[str, str]:
    """Settings of the demo's worker, in place of the user's for other workers. An empty value unsets a setting."""
    return {
        "DATABASE_URL": urls.database,
        "REDIS_URL": urls.redis,
        "WORKER_REGISTRY": "tasks.registry",
        "WORKER_QUEUE": broker.name,
        "WORKER_QUEUES": "",
        "WORKER_KEEP_RESULT": "",
        "WORKER_LEASE": "2",  # seconds until another worker runs the jobs of the killed one
    }


async def _census(folder: Path, worker: BackgroundProcess) -> int:
    scan_id = await _scan(folder)
    outcomes = Outcomes(await _jobs_of(scan_id))
    await show(_killing_once(worker, _progress(outcomes)), console)
    census = await read_census(scan_id)
    print_census(console, census, folder)
    print_failed(console, outcomes, folder)
    comparisons = compare(census, outcomes)
    print_check(console, comparisons)
    return 0 if all(comparison.holds for comparison in comparisons) else 1


async def _scan(folder: Path) -> int:
    """Enqueue a scan of `folder` and wait until all of its jobs are enqueued; the id of the scan."""
    async with db.scope():
        session = await db.session()
        scan = Scan(folder=str(folder))
        session.add(scan)
        await session.flush()
        job = await scan_folder.enqueue(folder, scan.id)
    try:
        await job.result(timeout=_TIMEOUT)
    except Exception as error:  # the exception that ended the job
        raise DemoError(f"scan_folder failed: {type(error).__name__}: {error}", 1) from error
    return scan.id


async def _jobs_of(scan_id: int) -> dict[str, Job[int]]:
    """The jobs of a scan, by the path of the file that each indexes."""
    async with db.scope():
        session = await db.session()
        scan = await session.get_one(Scan, scan_id)
    return {path: Job(job_id) for path, job_id in (scan.jobs or {}).items()}


async def _killing_once(worker: BackgroundProcess, progress: AsyncIterator[Counts]) -> AsyncIterator[Counts]:
    """Pass `progress` on, and kill the worker once after a third of the jobs. A new worker continues."""
    killed = False
    async for counts in progress:
        yield counts
        if not killed and counts.total / 3 <= counts.ended < counts.total:
            killed, pid = True, worker.pid
            await worker.kill_and_replace()
            console.print(
                f"kill -9 {pid}: the worker died after {counts.ended:,} jobs, while it ran others. "
                f"A new worker (process {worker.pid}) runs them again."
            )


async def _progress(outcomes: Outcomes) -> AsyncIterator[Counts]:
    """The counts of ended jobs, five times a second until all have ended."""
    last_change = time.monotonic()
    counts = Counts(outcomes.total)
    while not outcomes.complete:
        await outcomes.collect()
        failed = len(outcomes.failed)
        latest = Counts(outcomes.total, failed + len(outcomes.succeeded), failed)
        if latest != counts:
            counts, last_change = latest, time.monotonic()
        elif time.monotonic() - last_change > _TIMEOUT:
            raise DemoError(f"No job has ended for {_TIMEOUT:.0f} s, after {counts.ended:,} of {counts.total:,}.", 1)
        yield counts
        await asyncio.sleep(_PAUSE)


@asynccontextmanager
async def _connected(urls: Urls) -> AsyncIterator[Broker]:
    """Open the default database, create its tables, and open a default broker with a queue for this run alone."""
    database = db.Database(urls.database, default=True)
    broker = Broker(urls.redis, name=f"tandem:demo:{secrets.token_hex(4)}", default=True)
    try:
        await _answering("DATABASE_URL", create_tables())
        await _answering("DATABASE_URL", upgrade(database, Config.load().ledger))
        await _answering("REDIS_URL", broker.ping())
        yield broker
    finally:
        with suppress(RedisError):
            # Commands of a killed worker may reach Redis after its death.
            while found := [key async for key in broker.redis.scan_iter(f"{broker.name}*", count=10_000)]:
                await broker.redis.delete(*found)
                await asyncio.sleep(_PAUSE)
        await broker.close()
        await database.dispose()


async def _answering(variable: str, question: Coroutine[Any, Any, object]) -> None:
    try:
        await question
    except (db.DbError, LedgerError, SQLAlchemyError, RedisError, OSError) as error:
        raise DemoError(f"{variable}: {_first_line(error)}", 2) from error


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("folder", nargs="?", help="folder of Python source (default: this Python's standard library)")
    parser.add_argument("--keep", action="store_true", help="then serve the web application and the dashboard")
    return parser.parse_args()


def _folder(given: str | None) -> Path:
    folder = Path(given or sysconfig.get_path("stdlib")).expanduser().resolve()
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
        sys.exit(_explain(f"{given} is not a folder that can be read. Example: make demo SOURCE=~/code", 2))
    return folder


def _treat_terminate_as_cancel() -> None:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - coroutines run in tasks
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def _explain(message: str, exit_code: int) -> int:
    print(message, file=sys.stderr)  # noqa: T201 - a plain line, without markup
    return exit_code


def _first_line(error: BaseException) -> str:
    return (str(getattr(error, "orig", None) or error).splitlines() or [type(error).__name__])[0]


_DESCRIPTION = "Index a folder of Python source, one job a file, on a real Redis and a real PostgreSQL."
_EPILOG = "If REDIS_URL or DATABASE_URL is set, the demo uses that server instead of one from a wheel."

if __name__ == "__main__":
    sys.exit(main())
