"""The state at the end of a run: wait until no job waits or runs, read everything, and look up single jobs."""

import asyncio
import dataclasses
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.chaos.faults import LEASE
from tests.chaos.logs import ActionRecord, AppendLog, RedisWipe, read_action_logs
from tests.chaos.servers import QUEUES, Servers
from worker.broker.keys import Keys

_STALL_TIMEOUT = 90.0  # seconds without any progress after which none is expected any more
_POLL_INTERVAL = 0.5  # seconds
_PROGRESS_INTERVAL = 5.0  # seconds between two printed lines
_MAX_LOG_LINES = 30  # for each job


class Backlog(NamedTuple):
    """The jobs that have not run yet."""

    pending: int
    """Rows of the ledger."""
    queued: int
    """Jobs in Redis that wait or run."""
    effects: int
    """Effects so far: while their number grows, there is progress."""

    @property
    def is_empty(self) -> bool:
        return not self.pending and not self.queued

    def __str__(self) -> str:
        return f"{self.pending} rows pending, {self.queued} jobs queued, {self.effects} effects"


class LedgerRow(NamedTuple):
    """The ledger's row of one job."""

    id: str
    enqueued_at: int
    task: str
    state: str
    payload: bytes | None
    error: str | None
    tries: int

    @property
    def key(self) -> str | None:
        """The job's key, if its payload is kept."""
        if self.payload is None:
            return None
        key = json.loads(self.payload)["k"].get("key")
        return None if key is None else str(key)


@dataclass(frozen=True)
class Snapshot:
    """What happened in a run, as servers and logs show it at the end."""

    actions: Sequence[ActionRecord]
    markers: dict[str, frozenset[str]]
    """The committed transactions, with the keys of the jobs that each enqueued."""
    effects: dict[str, list[str]]
    """The ids of the jobs that left an effect, one for each effect, by key."""
    rows: dict[str, list[LedgerRow]]
    """The rows of the ledger by key, without those whose payload is not kept."""
    logged_runs: Counter[str]
    """How often each job ran that leaves a log line instead of an effect, by key."""
    wipes: Sequence[RedisWipe]


async def wait_until_idle(servers: Servers, print_line: Callable[[str], None]) -> Backlog:
    """Wait until no row is pending and no job is queued, while there is progress; return the backlog at the end.

    The backlog must stay empty for longer than a lease: until then a worker may hold a job that Redis has lost.
    """
    last, changed, printed = await _read_backlog(servers), time.monotonic(), 0.0
    while True:
        now = time.monotonic()
        if now - changed > (LEASE + 1 if last.is_empty else _STALL_TIMEOUT):
            return last
        if now - printed > _PROGRESS_INTERVAL and not last.is_empty:
            print_line(f"waiting for jobs to end: {last}")
            printed = now
        await asyncio.sleep(_POLL_INTERVAL)
        latest = await _read_backlog(servers)
        if latest != last:
            last, changed = latest, time.monotonic()


async def take_snapshot(servers: Servers, folder: Path, run_log: AppendLog, wipes: Sequence[RedisWipe]) -> Snapshot:
    """Read the database and the logs."""
    effects: dict[str, list[str]] = defaultdict(list)
    rows: dict[str, list[LedgerRow]] = defaultdict(list)
    async with servers.database() as database:
        for key, job_id in await database.fetch("SELECT key, job_id FROM effect ORDER BY number"):
            effects[key].append(job_id)
        markers = {name: frozenset(keys) for name, keys in await database.fetch("SELECT transaction, keys FROM marker")}
        for record in await database.fetch(f"SELECT {', '.join(LedgerRow._fields)} FROM tandem_jobs"):
            row = _ledger_row(record)
            if row.key is not None:
                rows[row.key].append(row)
    return Snapshot(read_action_logs(folder), markers, dict(effects), dict(rows), Counter(run_log.read()), wipes)


async def read_job_history(key: str, snapshot: Snapshot, servers: Servers, logs: Sequence[Path]) -> list[str]:
    """All that is known of one job, a line each: its producer's log, the ledger, Redis, effects, the workers' logs."""
    planned = key.partition("/")[0]
    lines = [
        f"planned: {job} in {dataclasses.replace(action, jobs=(), job_ids=None)}"
        for action in snapshot.actions
        for job in action.jobs
        if job.key == planned
    ]
    lines += [f"marker: {name}" for name, keys in snapshot.markers.items() if planned in keys]
    lines += [f"effect: of job {job_id}" for job_id in snapshot.effects.get(key, ())]
    lines += [f"ledger: {row}" for row in snapshot.rows.get(key, ())]
    for job_id in _job_ids(key, snapshot):
        lines += await _ledger_lines(job_id, servers)
        lines += await _redis_lines(job_id, servers)
        lines += list(_log_lines(job_id, logs))
    return lines


async def _read_backlog(servers: Servers) -> Backlog:
    async with servers.database() as database, servers.redis() as redis:
        pending = await database.fetchval("SELECT count(*) FROM tandem_jobs WHERE state = 'pending'")
        effects = await database.fetchval("SELECT count(*) FROM effect")
        queued = sum([await redis.zcard(queue) for queue in QUEUES])
    return Backlog(pending, queued, effects)


def _ledger_row(record: Any) -> LedgerRow:
    return LedgerRow(*record)


def _job_ids(key: str, snapshot: Snapshot) -> list[str]:
    told = [action.job_ids[key] for action in snapshot.actions if action.job_ids and key in action.job_ids]
    ids = [*told, *snapshot.effects.get(key, ()), *(row.id for row in snapshot.rows.get(key, ()))]
    return list(dict.fromkeys(ids))


async def _ledger_lines(job_id: str, servers: Servers) -> list[str]:
    async with servers.database() as database:
        rows = await database.fetch(
            "SELECT id, enqueued_at, state, task, tries, checks, check_at, started_at, finished_at, error"
            " FROM tandem_jobs WHERE id = $1",
            job_id,
        )
    return [f"ledger, by id: {dict(row)}" for row in rows]


async def _redis_lines(job_id: str, servers: Servers) -> list[str]:
    names = Keys.of(QUEUES[0])
    found = {}
    async with servers.redis() as redis:
        for name in (
            names.job(job_id),
            names.in_progress(job_id),
            names.result(job_id),
            f"{names.prefix}retry:{job_id}",
        ):
            found[name] = await redis.get(name)
        for queue in QUEUES:
            found[queue] = await redis.zscore(queue, job_id)
        found["started"] = await redis.hget(f"{names.prefix}started", job_id)  # type: ignore[misc]  # an awaitable
    return [f"Redis: {name} = {value!r}" for name, value in found.items() if value is not None]


def _log_lines(job_id: str, logs: Sequence[Path]) -> Iterator[str]:
    found = [
        f"{path.stem}: {line}"
        for path in logs
        for line in path.read_text(errors="replace").splitlines()
        if job_id in line
    ]
    yield from found[:_MAX_LOG_LINES]
