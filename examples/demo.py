"""The census of a folder, from nothing to numbers: ``make demo``, or ``python -m examples.demo [folder]``.

1. It starts Redis and PostgreSQL, unless REDIS_URL and DATABASE_URL name yours, and then ``arq worker.Settings``.
2. It enqueues `scan_folder`, as `examples/web.py` does, and shows how far the jobs are.
3. It shows what they found, and checks that the rows in the database are those of the jobs that succeeded.
4. It stops all that it started, also after Ctrl-C. If it is killed itself, watchdogs do.
"""

import argparse
import asyncio
import os
import secrets
import signal
import sys
import sysconfig
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

import db
from examples.findings import Outcomes, compare, read_census
from examples.progress import Counts, show
from examples.report import print_census, print_check, print_failed
from examples.worker_process import WorkerDiedError, WorkerProcess
from tasks.census import scan_folder
from tasks.models import Scan, create_tables
from worker import Broker, Job
from worker.broker.keys import Keys
from worker.config import Config
from worker.embedded import EmbeddedServerError, Urls
from worker.embedded.local_servers import local_servers, message
from worker.errors import ConfigError, LedgerError
from worker.ledger.migrate import upgrade

_INTERRUPTED, _TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
_PAUSE = 0.2  # seconds between two looks at how far the jobs are
_PATIENCE = 330.0  # seconds without news: somewhat more than one job may take (WORKER_JOB_TIMEOUT)

# FORCE_COLOR, which many CI systems set, does not make a terminal of a log.
console = Console(highlight=False, soft_wrap=True, force_terminal=None if sys.stdout.isatty() else False)


class DemoError(Exception):
    """The demo cannot begin, or go on; one line says why."""

    def __init__(self, why: str, exit_code: int) -> None:
        super().__init__(why)
        self.exit_code = exit_code


def main() -> int:
    """Run the demo. Its exit code: 0, 1 if the check does not hold or the work broke off, 2 if it could not begin."""
    # A shell lets what it starts in the background ignore Ctrl-C; here it always means: stop, and clean up.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = _folder()
    try:
        config = Config.load()
        console.print(message(config) or "DATABASE_URL and REDIS_URL are set: this run uses those servers.")
        with local_servers(config) as urls:
            return asyncio.run(_demo(folder, urls))
    except (ConfigError, EmbeddedServerError) as error:
        return _explain(str(error), 2)
    except DemoError as error:
        return _explain(str(error), error.exit_code)
    except WorkerDiedError as error:
        return _explain(str(error), 1)
    except (db.DbError, SQLAlchemyError, RedisError) as error:
        return _explain(f"The work broke off: {_first_line(error)}", 1)
    except KeyboardInterrupt:
        return _explain("Interrupted: the worker, and the servers that were started, are stopped.", _INTERRUPTED)
    except asyncio.CancelledError:
        return _explain("Terminated: the worker, and the servers that were started, are stopped.", _TERMINATED)


async def _demo(folder: Path, urls: Urls) -> int:
    _treat_terminate_as_cancel()
    async with _connected(urls) as broker, WorkerProcess(_settings(urls, broker)) as worker:
        console.print(f"arq worker.Settings runs (process {worker.pid}).")
        return await worker.while_it_runs(_census(folder, worker))


def _settings(urls: Urls, broker: Broker) -> dict[str, str]:
    """What the worker must be told, whatever settings the user has for other workers; an empty one is unset."""
    return {
        "DATABASE_URL": urls.database,
        "REDIS_URL": urls.redis,
        "WORKER_REGISTRY": "tasks.registry",
        "WORKER_QUEUE": broker.name,
        "WORKER_QUEUES": "",
        "WORKER_KEEP_RESULT": "",
        "WORKER_LEASE": "2",  # seconds until its jobs are taken over when it is killed
    }


async def _census(folder: Path, worker: WorkerProcess) -> int:
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
    """Have `folder` scanned; the id of the scan, once all of its jobs are enqueued."""
    async with db.scope():
        session = await db.session()
        scan = Scan(folder=str(folder))
        session.add(scan)
        await session.flush()
        job = await scan_folder.enqueue(folder, scan.id)
    try:
        await job.result(timeout=_PATIENCE)
    except Exception as error:  # whatever ended the job is raised here
        raise DemoError(f"scan_folder failed: {type(error).__name__}: {error}", 1) from error
    return scan.id


async def _jobs_of(scan_id: int) -> dict[str, Job[int]]:
    """The jobs of a scan by the paths that they are for."""
    async with db.scope():
        session = await db.session()
        scan = await session.get_one(Scan, scan_id)
    return {path: Job(job_id) for path, job_id in (scan.jobs or {}).items()}


async def _killing_once(worker: WorkerProcess, progress: AsyncIterator[Counts]) -> AsyncIterator[Counts]:
    """`progress`; the worker is killed in the middle of it, and another one takes over."""
    killed = False
    async for counts in progress:
        yield counts
        if not killed and counts.total / 3 <= counts.ended < counts.total:
            killed, pid = True, worker.pid
            await worker.kill_and_replace()
            console.print(
                f"kill -9 {pid}: the worker died after {counts.ended:,} jobs, in the middle of others. "
                f"Another one (process {worker.pid}) takes them over."
            )


async def _progress(outcomes: Outcomes) -> AsyncIterator[Counts]:
    """How far the jobs are, again and again until all have ended."""
    last_news = time.monotonic()
    known = Counts(outcomes.total)
    while not outcomes.complete:
        await outcomes.collect()
        failed = len(outcomes.failed)
        latest = Counts(outcomes.total, failed + len(outcomes.succeeded), failed)
        if latest != known:
            known, last_news = latest, time.monotonic()
        elif time.monotonic() - last_news > _PATIENCE:
            raise DemoError(
                f"No job has ended for {_PATIENCE:.0f} s; {known.ended:,} of {known.total:,} had before.", 1
            )
        yield known
        await asyncio.sleep(_PAUSE)


@asynccontextmanager
async def _connected(urls: Urls) -> AsyncIterator[Broker]:
    """The default database, with all its tables, and a default queue of our own, which no other worker serves."""
    database = db.Database(urls.database, default=True)
    broker = Broker(urls.redis, name=f"tandem:demo:{secrets.token_hex(4)}", default=True)
    try:
        await _answering("DATABASE_URL", create_tables())
        await _answering("DATABASE_URL", upgrade(database, Config.load().ledger))
        await _answering("REDIS_URL", broker.ping())
        yield broker
    finally:
        keys = Keys.of(broker.name)
        with suppress(RedisError):
            # What a killed worker has sent may arrive after its death.
            while await broker.redis.delete(broker.name, keys.epoch, keys.tasks):  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(_PAUSE)
        await broker.close()
        await database.dispose()


async def _answering(variable: str, question: Coroutine[Any, Any, object]) -> None:
    try:
        await question
    except (db.DbError, LedgerError, SQLAlchemyError, RedisError, OSError) as error:
        raise DemoError(f"{variable}: {_first_line(error)}", 2) from error


def _folder() -> Path:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("folder", nargs="?", help="with Python source (default: this Python's standard library)")
    given = parser.parse_args().folder
    folder = Path(given or sysconfig.get_path("stdlib")).expanduser().resolve()
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
        sys.exit(_explain(f"{given} is not a folder that can be read. Example: make demo SOURCE=~/code", 2))
    return folder


def _treat_terminate_as_cancel() -> None:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - coroutines run in tasks
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def _explain(why: str, exit_code: int) -> int:
    print(why, file=sys.stderr)  # noqa: T201 - as plain as it can be
    return exit_code


def _first_line(error: BaseException) -> str:
    return (str(getattr(error, "orig", None) or error).splitlines() or [type(error).__name__])[0]


_DESCRIPTION = "The census of a folder of Python source: one job a file, on a real Redis and a real PostgreSQL."
_EPILOG = "REDIS_URL and DATABASE_URL, where they are set, are used instead of servers from wheels."

if __name__ == "__main__":
    sys.exit(main())
