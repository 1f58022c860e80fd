"""The invariants that a run must keep, and the leaks that it must not leave.

1. A job exists if and only if its transaction was committed. The proof of that is the transaction's marker row.
2. A directly enqueued job exists, unless its producer got no confirmation, or Redis was wiped while it held the job.
3. A job that exists has its effect once. A job that does not exist has no effect. There are no other effects.
4. After the last job there is no idle transaction. After the last process there is no connection, no Redis key but
   those that are kept by design, and no child process.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field

from tests.chaos.logs import ActionRecord, Intent, Outcome, PlannedJob
from tests.chaos.processes import ManagedProcess
from tests.chaos.servers import QUEUES, Servers
from tests.chaos.snapshot import Snapshot
from tests.chaos.tasks import child_key
from worker.broker.keys import Keys

_LEAK_TIMEOUT = 10.0  # seconds: a tombstone lives for five, and a backend needs a moment to see that its client left

_NAMES = [Keys.of(queue) for queue in QUEUES]
_KEPT_KEYS = (
    "arq:served-queues",
    *(names.result("") for names in _NAMES),
    *(names.slots for names in _NAMES),
    *(names.epoch for names in _NAMES),
    *(names.tasks for names in _NAMES),
    *(names.metrics for names in _NAMES),
)
"""Prefixes of keys that may stay: results and metrics until they expire, and what outlives all jobs by design."""


@dataclass(frozen=True)
class Violation:
    """One job for which a claim does not hold."""

    key: str
    what: str
    effects: int


@dataclass(frozen=True)
class CheckResult:
    """One claim, the number of jobs it was checked for, and its violations."""

    claim: str
    checked: int
    violations: list[Violation] = field(default_factory=list)


def check_invariants(snapshot: Snapshot, *, once: bool) -> list[CheckResult]:
    """Check all claims about jobs. If `once` is false, a row need not say that the job's effect is committed."""
    return _InvariantChecker(snapshot, once=once).check_all()


async def find_idle_transactions(servers: Servers) -> list[str]:
    """Find backends that stay idle in a transaction, with their last statements."""

    async def find() -> list[str]:
        async with servers.database() as database:
            found = await database.fetch(
                "SELECT pid, query FROM pg_stat_activity"
                " WHERE datname = current_database() AND state LIKE 'idle in transaction%'"
            )
        return [f"backend {pid} is idle in a transaction: {query}" for pid, query in found]

    return await _find_leaks(find)


async def find_connections(servers: Servers) -> list[str]:
    """Find backends whose clients have ended."""

    async def find() -> list[str]:
        async with servers.database() as database:
            backends = await database.backends()
        return [f"{backends} PostgreSQL backends are left without a client"] if backends else []

    return await _find_leaks(find)


async def find_keys(servers: Servers) -> list[str]:
    """Find Redis keys that will never be removed."""

    async def find() -> list[str]:
        async with servers.redis() as redis:
            found = sorted(key.decode() for key in await redis.keys("*"))
        return [f"Redis has {key}" for key in found if not key.startswith(_KEPT_KEYS)]

    return await _find_leaks(find)


def find_children(processes: Iterable[ManagedProcess]) -> list[str]:
    """Find running processes that the given ones have started."""
    return [f"{process.name} left a process behind: {line}" for process in processes for line in process.children()]


async def _find_leaks(find: Callable[[], Awaitable[list[str]]]) -> list[str]:
    """Repeat `find` until it finds nothing, for a while; return what it found last."""
    deadline = time.monotonic() + _LEAK_TIMEOUT
    while (found := await find()) and time.monotonic() < deadline:  # noqa: ASYNC110 - servers send no event
        await asyncio.sleep(0.2)
    return found


class _InvariantChecker:
    def __init__(self, snapshot: Snapshot, *, once: bool) -> None:
        self._snapshot = snapshot
        self._once = once
        self._jobs = [(action, job) for action in snapshot.actions for job in action.jobs]
        self._committed = frozenset(key for keys in snapshot.markers.values() for key in keys)

    def check_all(self) -> list[CheckResult]:
        committed = [job for _, job in self._jobs if job.key in self._committed]
        direct = [(action, job) for action, job in self._jobs if job.intent is Intent.DIRECT]
        kept = [(action, job) for action, job in direct if self._was_kept(action, job)]
        parents = [job for job in self._jobs_of_task("fan_out") if self._count_effects(job.key)]
        childless = [job for job in self._jobs_of_task("fan_out") if not self._count_effects(job.key)]
        return [
            self._check("committed: one effect", filter(_leaves_effect, committed), self._check_one_effect),
            self._check("committed, and fails: no effect, a failed row", filter(_fails, committed), self._check_failed),
            self._check("committed, without effects: has run", filter(_leaves_log_line, committed), self._check_logged),
            self._check("rolled back whole: nothing", self._jobs_with(Intent.ROLLBACK), self._check_no_trace),
            self._check(
                "rolled back to a savepoint: nothing", self._jobs_with(Intent.SAVEPOINT_ROLLBACK), self._check_no_trace
            ),
            self._check("not committed, or id taken: nothing", self._uncommitted_jobs(), self._check_no_trace),
            self._check("direct: at most one effect", (job for _, job in direct), self._check_at_most_one_effect),
            self._check("direct, not wiped: done", (job for _, job in kept), self._check_not_lost),
            CheckResult("children of a fan-out: one effect", *self._check_children(parents)),
            CheckResult(
                "children that were rolled back: nothing", *self._check_rolled_back_children(parents, childless)
            ),
            CheckResult("effects of unknown jobs: none", *self._check_unknown_effects()),
            CheckResult("producers were told the real outcome", *self._check_outcomes()),
        ]

    def _check(self, claim: str, jobs: Iterable[PlannedJob], check: Callable[[PlannedJob], str | None]) -> CheckResult:
        checked = [(job, check(job)) for job in jobs]
        violations = [
            Violation(job.key, f"{job.task}: {wrong}", self._count_effects(job.key)) for job, wrong in checked if wrong
        ]
        return CheckResult(claim, len(checked), violations)

    def _jobs_with(self, intent: Intent) -> Iterator[PlannedJob]:
        return (job for _, job in self._jobs if job.intent is intent)

    def _jobs_of_task(self, task: str) -> Iterator[PlannedJob]:
        return (job for _, job in self._jobs if job.task == task)

    def _uncommitted_jobs(self) -> Iterator[PlannedJob]:
        """Jobs that were to be committed and are not."""
        return (job for job in self._jobs_with(Intent.COMMIT) if job.key not in self._committed)

    def _was_kept(self, action: ActionRecord, job: PlannedJob) -> bool:
        """Whether a direct job was certainly queued and certainly not wiped."""
        job_id = (action.job_ids or {}).get(job.key)
        if job_id is None or action.ended is None:
            return False
        return not any(wipe.may_have_lost(job_id, action.started, action.ended) for wipe in self._snapshot.wipes)

    def _count_effects(self, key: str) -> int:
        return len(self._snapshot.effects.get(key, ()))

    def _states(self, key: str) -> list[str]:
        return [row.state for row in self._snapshot.rows.get(key, ())]

    def _check_one_effect(self, job: PlannedJob) -> str | None:
        if (effects := self._count_effects(job.key)) != 1:
            return f"{effects} effects"
        return self._check_state(job, "done") if self._once else None

    def _check_failed(self, job: PlannedJob) -> str | None:
        if effects := self._count_effects(job.key):
            return f"{effects} effects"
        if wrong := self._check_state(job, "failed"):
            return wrong
        (row,) = self._snapshot.rows[job.key]
        return None if "is to fail" in (row.error or "") else f"its row has another error: {row.error!r}"

    def _check_logged(self, job: PlannedJob) -> str | None:
        if not self._snapshot.logged_runs[job.key]:
            return "it never ran"
        return self._check_state(job, "done")

    def _check_state(self, job: PlannedJob, state: str) -> str | None:
        states = self._states(job.key)
        return None if states == [state] else f"the states of its rows are {states}, expected {[state]}"

    def _check_no_trace(self, job: PlannedJob) -> str | None:
        if effects := self._count_effects(job.key):
            return f"{effects} effects"
        if self._snapshot.logged_runs[job.key]:
            return "it ran"
        states = self._states(job.key)
        return f"it has rows: {states}" if states else None

    def _check_at_most_one_effect(self, job: PlannedJob) -> str | None:
        limit = 1 if _leaves_effect(job) else 0
        effects = self._count_effects(job.key)
        return f"{effects} effects" if effects > limit else None

    def _check_not_lost(self, job: PlannedJob) -> str | None:
        if _fails(job):
            return None
        runs = self._snapshot.logged_runs[job.key] if _leaves_log_line(job) else self._count_effects(job.key)
        return None if runs else "it is lost"

    def _check_children(self, parents: list[PlannedJob]) -> tuple[int, list[Violation]]:
        """Each child has as many effects as its parent."""
        children = [
            (child_key(parent.key, number), parent)
            for parent in parents
            for number in range(parent.arguments["children"])
        ]
        return len(children), [
            Violation(key, f"{self._count_effects(key)} effects of a child", self._count_effects(key))
            for key, parent in children
            if self._count_effects(key) != self._count_effects(parent.key)
        ]

    def _check_rolled_back_children(
        self, parents: list[PlannedJob], childless: list[PlannedJob]
    ) -> tuple[int, list[Violation]]:
        """Neither the child of a rolled back savepoint nor any child of a rolled back parent exists."""
        keys = [child_key(job.key, job.arguments["children"]) for job in parents]
        keys += [child_key(job.key, number) for job in childless for number in range(job.arguments["children"] + 1)]
        return len(keys), [
            Violation(key, "a child that was rolled back", self._count_effects(key))
            for key in keys
            if self._count_effects(key) or self._states(key)
        ]

    def _check_unknown_effects(self) -> tuple[int, list[Violation]]:
        planned = {job.key for _, job in self._jobs}
        unknown = [key for key in self._snapshot.effects if key.partition("/")[0] not in planned]
        return len(self._snapshot.effects), [
            Violation(key, "no producer enqueued it", self._count_effects(key)) for key in unknown
        ]

    def _check_outcomes(self) -> tuple[int, list[Violation]]:
        """A producer that was told that its transaction is committed, or aborted, was told so rightly."""
        told = [
            action
            for action in self._snapshot.actions
            if not _is_direct(action) and action.outcome is not Outcome.UNKNOWN
        ]
        return len(told), [
            Violation(action.action, f"was told: {action.outcome.value}", 0)
            for action in told
            if (action.outcome is Outcome.OK) != (action.action in self._snapshot.markers)
        ]


def _fails(job: PlannedJob) -> bool:
    return job.task == "fail" or bool(job.arguments.get("fails"))


def _leaves_log_line(job: PlannedJob) -> bool:
    return job.task in ("log_run", "log_run_read_only")


def _leaves_effect(job: PlannedJob) -> bool:
    return not _fails(job) and not _leaves_log_line(job)


def _is_direct(action: ActionRecord) -> bool:
    return any(job.intent is Intent.DIRECT for job in action.jobs)
