"""``run``: one run, from empty servers to the verdict."""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.chaos import remains
from tests.chaos.chronicle import Chronicle
from tests.chaos.diary import Diary
from tests.chaos.evidence import evidence
from tests.chaos.facts import Facts, gather
from tests.chaos.faults import FAULTS, LEASE, Arena, Fault
from tests.chaos.post import Post
from tests.chaos.settling import settle
from tests.chaos.stage import QUEUES, Stage
from tests.chaos.storm import Storm
from tests.chaos.verdict import Finding, judge
from tests.proxy import Proxy
from tests.waiting import eventually
from worker.keys import Keys

_WORKERS = (["worker", "run"], ["worker", "run"], ["arq", "worker.Settings"])
_PRODUCERS = 2
_STARTING = 60.0  # seconds that the first workers may take
_MOST_EVIDENCE = 3  # jobs of each claim


@dataclass(frozen=True)
class Plan:
    """What to run."""

    seconds: float
    """How long faults fall."""
    seed: int
    folder: Path
    """Where logs, journals and the list of faults go; it must be there."""
    once: bool = True
    """Whether the tasks' effects are to happen once."""


@dataclass(frozen=True)
class Report:
    """What came of it."""

    plan: Plan
    chronicle: Chronicle
    findings: list[Finding]
    remains: list[str]
    """What was left behind."""
    evidence: dict[str, list[str]]
    """What is known of each of the first few offending jobs, by key."""

    @property
    def holds(self) -> bool:
        """Whether all is as it should be."""
        return not (self.remains or self.chronicle.misdeeds or any(finding.offences for finding in self.findings))

    @property
    def doubles(self) -> int:
        """Jobs whose effect happened more than once."""
        return sum(offence.effects > 1 for finding in self.findings for offence in finding.offences)


async def run(plan: Plan, say: Callable[[str], None], faults: Mapping[Fault, int] | None = None) -> Report:
    """Let faults fall on workers, producers and servers; wait until all is done; and count.

    Args:
        say: told what happens, a line at a time.
        faults: and how often each falls, by comparison (default: all).
    """
    chronicle = Chronicle(plan.folder, say)
    diary = Diary(plan.folder / "thoughts")
    async with AsyncExitStack() as held:
        stage = held.enter_context(Stage())
        workers = [await _post(held, stage, plan, diary, *worker) for worker in _workers()]
        await _at_work(stage, len(workers))
        producers = [await _post(held, stage, plan, diary, *producer) for producer in _producers(plan)]
        arena = Arena(stage, workers, producers, chronicle)
        say(f"{len(workers)} workers and {len(producers)} producers; logs and journals: {plan.folder}")
        await Storm(arena, faults or FAULTS, random.Random(plan.seed)).blow(plan.seconds)
        await remains.end(producers, chronicle)
        left = [f"not done: {last}"] if not (last := await settle(stage, say)).is_over else []
        facts = await gather(stage, plan.folder, diary, chronicle.wipes)
        findings = judge(facts, once=plan.once)
        known = await _evidence(findings, facts, stage, [worker.log for worker in workers])
        left += await remains.open_transactions(stage)
        await remains.end(workers, chronicle)
        left += [*await remains.connections(stage), *await remains.keys(stage)]
        left += remains.processes([*workers, *producers])
    return Report(plan, chronicle, findings, left, known)


async def _post(
    held: AsyncExitStack,
    stage: Stage,
    plan: Plan,
    diary: Diary,
    name: str,
    arguments: Callable[[str], list[str]],
    settings: Mapping[str, str],
) -> Post:
    """A filled post, behind a proxy of its own."""
    proxy = await held.enter_async_context(Proxy(stage.database_url))
    servers = {"DATABASE_URL": proxy.url, "REDIS_URL": stage.redis_url}
    once = {"CHAOS_ONCE": "true" if plan.once else "false"}
    return held.enter_context(
        Post(name, arguments, {**servers, **settings, **once, **diary.variable}, proxy, plan.folder)
    )


async def _at_work(stage: Stage, workers: int) -> None:
    """Wait until so many workers say that they are well."""

    async def well() -> int:
        async with stage.redis() as redis:
            return len(await redis.keys(Keys.of(QUEUES[0]).health("*")))

    await eventually(well, timeout=_STARTING, every=0.1, equals=workers)


def _workers() -> Iterator[tuple[str, Callable[[str], list[str]], dict[str, str]]]:
    for number, command in enumerate(_WORKERS, start=1):
        name = f"worker-{number}"
        yield name, partial(_always, command), _worker_settings(name)


def _always(command: list[str], _life: str) -> list[str]:
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
    }


def _producers(plan: Plan) -> Iterator[tuple[str, Callable[[str], list[str]], dict[str, str]]]:
    def arguments(life: str) -> list[str]:
        return ["tests.chaos.producer", str(plan.folder), str(plan.seed), life]

    for number in range(1, _PRODUCERS + 1):
        yield f"producer-{number}", arguments, {}


async def _evidence(findings: list[Finding], facts: Facts, stage: Stage, logs: list[Path]) -> dict[str, list[str]]:
    keys = dict.fromkeys(offence.key for finding in findings for offence in finding.offences[:_MOST_EVIDENCE])
    return {key: await evidence(key, facts, stage, logs) for key in keys}
