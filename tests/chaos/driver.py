"""``run``: one run of chaos, from empty servers to the report."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from tests.chaos import checks
from tests.chaos.checks import CheckResult, check_invariants
from tests.chaos.faults import FAULTS, LEASE, Fault, Targets
from tests.chaos.injector import FaultInjector
from tests.chaos.logs import AppendLog, FaultLog
from tests.chaos.processes import ManagedProcess, stop_all
from tests.chaos.report import ChaosOptions, Report
from tests.chaos.servers import QUEUES, Servers
from tests.chaos.snapshot import Snapshot, read_job_history, take_snapshot, wait_until_idle
from tests.proxy import Proxy
from tests.waiting import eventually
from worker.broker.keys import Keys

_WORKER_COMMANDS = (["worker", "run"], ["worker", "run"], ["arq", "worker.Settings"])
_PRODUCERS = 2
_START_TIMEOUT = 60.0  # seconds for the first workers
_MAX_HISTORIES = 3  # jobs of each check


async def run(
    options: ChaosOptions, print_line: Callable[[str], None], faults: Mapping[Fault, int] | None = None
) -> Report:
    """Inject faults into workers, producers and servers, wait until all jobs have ended, and check them.

    Args:
        print_line: called with each line of progress.
        faults: the faults with their weights (default: all).
    """
    log = FaultLog(options.folder, print_line)
    run_log = AppendLog(options.folder / "logged-runs")
    async with AsyncExitStack() as stack:
        servers = stack.enter_context(Servers())
        workers = [await _start(stack, servers, options, run_log, *worker) for worker in _workers()]
        await _wait_for_workers(servers, len(workers))
        producers = [await _start(stack, servers, options, run_log, *producer) for producer in _producers(options)]
        targets = Targets(servers, workers, producers, log)
        print_line(f"{len(workers)} workers and {len(producers)} producers; logs: {options.folder}")
        await FaultInjector(targets, faults or FAULTS, random.Random(options.seed)).run(options.seconds)
        await stop_all(producers, log)
        leaks = [f"not done: {backlog}"] if not (backlog := await wait_until_idle(servers, print_line)).is_empty else []
        snapshot = await take_snapshot(servers, options.folder, run_log, log.wipes)
        results = check_invariants(snapshot, once=options.once)
        histories = await _read_histories(results, snapshot, servers, [worker.log for worker in workers])
        leaks += await checks.find_idle_transactions(servers)
        await stop_all(workers, log)
        leaks += [*await checks.find_connections(servers), *await checks.find_keys(servers)]
        leaks += checks.find_children([*workers, *producers])
    return Report(options, log, results, leaks, histories)


async def _start(
    stack: AsyncExitStack,
    servers: Servers,
    options: ChaosOptions,
    run_log: AppendLog,
    name: str,
    arguments: Callable[[str], list[str]],
    settings: Mapping[str, str],
) -> ManagedProcess:
    """Start a process that reaches PostgreSQL through a proxy of its own."""
    proxy = await stack.enter_async_context(Proxy(servers.database_url))
    urls = {"DATABASE_URL": proxy.url, "REDIS_URL": servers.redis_url}
    once = {"CHAOS_ONCE": "true" if options.once else "false"}
    environment = {**urls, **settings, **once, **run_log.environment}
    return stack.enter_context(ManagedProcess(name, arguments, environment, proxy, options.folder))


async def _wait_for_workers(servers: Servers, workers: int) -> None:
    """Wait until this many workers have reported their health."""

    async def count_healthy() -> int:
        async with servers.redis() as redis:
            return len(await redis.keys(Keys.of(QUEUES[0]).health("*")))

    await eventually(count_healthy, timeout=_START_TIMEOUT, every=0.1, equals=workers)


def _workers() -> Iterator[tuple[str, Callable[[str], list[str]], dict[str, str]]]:
    for number, command in enumerate(_WORKER_COMMANDS, start=1):
        name = f"worker-{number}"
        yield name, partial(_worker_arguments, command), _worker_settings(name)


def _worker_arguments(command: list[str], _instance: str) -> list[str]:
    return command


def _worker_settings(name: str) -> dict[str, str]:
    return {
        "WORKER_ID": name,
        "WORKER_REGISTRY": "tests.chaos.tasks",
        "WORKER_QUEUES": ",".join(QUEUES),
        "WORKER_CONCURRENCY": "8",
        "WORKER_LEASE": f"{LEASE:g}",
        "WORKER_GRACE": "2",
        "WORKER_KEEP_RESULT": "5",  # so that shared ids become free again
        "WORKER_KEEP_ARGUMENTS": "true",  # the checks know a row by the key in its arguments
    }


def _producers(options: ChaosOptions) -> Iterator[tuple[str, Callable[[str], list[str]], dict[str, str]]]:
    def arguments(instance: str) -> list[str]:
        return ["tests.chaos.producer", str(options.folder), str(options.seed), instance]

    for number in range(1, _PRODUCERS + 1):
        yield f"producer-{number}", arguments, {}


async def _read_histories(
    results: list[CheckResult], snapshot: Snapshot, servers: Servers, logs: Sequence[Path]
) -> dict[str, list[str]]:
    keys = dict.fromkeys(violation.key for result in results for violation in result.violations[:_MAX_HISTORIES])
    return {key: await read_job_history(key, snapshot, servers, logs) for key in keys}
