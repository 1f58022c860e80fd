"""The command ``tandem doctor``: look for what makes jobs wait, fail or get lost, and say what to type.

It only reads. Only `worker.cli` may import it. A check that a worker makes at its start must not be put here.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import typer
from pydantic_core import to_json
from rich.text import Text

from db import DatabaseURLError
from db.text.plural import plural
from worker.broker.broker import Broker
from worker.broker.errors import RedisError
from worker.broker.server_info import redis_info
from worker.cli.database import opened
from worker.cli.doctor.finding import Finding, Level
from worker.cli.doctor.fleet_checks import check_pauses, check_unpublished, check_workers
from worker.cli.doctor.postgres_checks import check_server, check_table
from worker.cli.doctor.redis_checks import check_redis
from worker.cli.output import FAILED, out, printable_text
from worker.config import Config
from worker.embedded.local_servers import USE_LOCAL_SERVERS, find
from worker.errors import LedgerError, RegistryError
from worker.ledger.ledger import Ledger
from worker.ledger.server_info import postgres_info
from worker.metrics.reader import MetricsReader
from worker.metrics.records import WorkerReport
from worker.process.errors import StartupError
from worker.process.served import describe, queues_not_served_here, unserved
from worker.registry import Registry, load

_MARKS = {
    Level.OK: ("✓", "green"),
    Level.NOTE: ("·", "cyan"),
    Level.WARNING: ("!", "yellow"),
    Level.ERROR: ("✗", "red"),
}
_STATEMENT_TIMEOUT = 10.0  # seconds


def doctor(*, json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> int:
    """Check Redis, PostgreSQL, the registry and the workers, and say what to type.

    The exit code is 0 unless there is an error. Warnings and notes do not count as errors.
    """
    config = Config.load()
    set_url = "export REDIS_URL=redis://localhost:6379/0"
    if config.redis_url is None and find() is not None:
        set_url = USE_LOCAL_SERVERS
    findings = asyncio.run(_all_findings(config, set_url, show=not json))
    if json:
        typer.echo(to_json([{name: getattr(each, name) for name in Finding.__slots__} for each in findings]))
    else:
        out.print(_summary(findings))
    return FAILED if any(finding.level is Level.ERROR for finding in findings) else 0


async def _all_findings(config: Config, set_url: str, *, show: bool) -> list[Finding]:
    findings = []
    async for finding in _examine(config, set_url):
        findings.append(finding)
        if show:
            _print(finding)
    return findings


async def _examine(config: Config, set_url: str) -> AsyncIterator[Finding]:
    registry = None
    try:
        registry = load(config.registry)
        count = len(registry.tasks)
        yield Finding(Level.OK, "registry", f"{config.registry}: {plural(count, 'task')}")
    except RegistryError as error:
        for problem in error.problems:
            yield Finding(Level.ERROR, "registry", problem, "tandem check")
    if config.redis_url is None:
        yield Finding(Level.ERROR, "REDIS_URL", "is not set", set_url)
        async for finding in _database(config, None, workers=0):
            yield finding
        return
    broker = Broker(config.redis_url, name=config.queue)
    try:
        async for finding in _with_redis(config, registry, broker):
            yield finding
    finally:
        await broker.close()


async def _with_redis(config: Config, registry: Registry | None, broker: Broker) -> AsyncIterator[Finding]:
    workers: dict[str, WorkerReport] = {}
    reached: Broker | None = None
    try:
        for server in await redis_info(broker.connections):
            for finding in check_redis(server):
                yield finding
        workers = await MetricsReader(broker).healthy_workers(config.queue_names)
        for finding in check_workers(workers, config.queue_names):
            yield finding
        elsewhere = {} if registry is None else queues_not_served_here(registry.tasks.values(), config)
        for line in describe(await unserved(elsewhere, broker), config):
            yield Finding(Level.WARNING, "queues", line)
        async for finding in check_pauses(broker, [*config.queue_names, *elsewhere]):
            yield finding
        reached = broker
    except (RedisError, OSError) as error:
        yield Finding(Level.ERROR, "REDIS_URL", f"no answer: {error}", "start the server, or correct the URL")
    async for finding in _database(config, reached, workers=len(workers)):
        yield finding


async def _database(config: Config, broker: Broker | None, *, workers: int) -> AsyncIterator[Finding]:
    try:
        async with opened(config, statement_timeout=_STATEMENT_TIMEOUT) as database:
            if database.kind == "postgresql":
                for finding in check_server(await postgres_info(database), max(workers, 1) * config.pool_size):
                    yield finding
            else:
                yield Finding(Level.NOTE, "database", f"{database.kind}: for development, and one worker process")
            complete = True
            async for finding in check_table(database, config.ledger):
                complete = complete and finding.level is Level.OK
                yield finding
            if complete and broker is not None:
                yield await check_unpublished(Ledger(config.ledger), broker)
    except (StartupError, LedgerError, DatabaseURLError) as error:
        yield Finding(Level.ERROR, "DATABASE_URL", str(error).removeprefix("DATABASE_URL: "))


def _print(finding: Finding) -> None:
    mark, colour = _MARKS[finding.level]
    out.print(printable_text((f"{mark} ", colour), (f"{finding.subject:<24}", "bold"), finding.text))
    if finding.fix:
        out.print(printable_text((" " * 26, ""), ("→ ", colour), (finding.fix, "bold")))


def _summary(findings: list[Finding]) -> Text:
    counts = {level: sum(finding.level is level for finding in findings) for level in Level}
    if not counts[Level.ERROR] and not counts[Level.WARNING]:
        return Text(f"{counts[Level.OK]} checks passed", style="bold green")
    errors, warnings = counts[Level.ERROR], counts[Level.WARNING]
    return Text(f"errors: {errors}, warnings: {warnings}, checks passed: {counts[Level.OK]}", style="bold")
