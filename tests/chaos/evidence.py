"""All that is known of one job: its producer's journal, the ledger, Redis, the effects, and the workers' logs."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.chaos.facts import Facts
from tests.chaos.stage import QUEUES, Stage
from worker.keys import Keys

_MOST_LINES = 30  # of logs


async def evidence(key: str, facts: Facts, stage: Stage, logs: Sequence[Path]) -> list[str]:
    """For the job of `key`, a line each."""
    asked = key.partition("/")[0]
    lines = [
        f"journal: {wish} in {dataclasses.replace(entry, wishes=(), job_ids=None)}"
        for entry in facts.entries
        for wish in entry.wishes
        if wish.key == asked
    ]
    lines += [f"marker: {name}" for name, keys in facts.markers.items() if asked in keys]
    lines += [f"effect: of job {job_id}" for job_id in facts.effects.get(key, ())]
    lines += [f"ledger: {row}" for row in facts.rows.get(key, ())]
    for job_id in _job_ids(key, facts):
        lines += await _ledger(job_id, stage)
        lines += await _redis(job_id, stage)
        lines += list(_logged(job_id, logs))
    return lines


def _job_ids(key: str, facts: Facts) -> list[str]:
    told = [entry.job_ids[key] for entry in facts.entries if entry.job_ids and key in entry.job_ids]
    ids = [*told, *facts.effects.get(key, ()), *(row.id for row in facts.rows.get(key, ()))]
    return list(dict.fromkeys(ids))


async def _ledger(job_id: str, stage: Stage) -> list[str]:
    async with stage.database() as database:
        rows = await database.fetch(
            "SELECT id, enqueued_at, state, task, tries, checks, check_at, started_at, finished_at, error"
            " FROM tandem_jobs WHERE id = $1",
            job_id,
        )
    return [f"ledger, by id: {dict(row)}" for row in rows]


async def _redis(job_id: str, stage: Stage) -> list[str]:
    names = Keys.of(QUEUES[0])
    found = {}
    async with stage.redis() as redis:
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


def _logged(job_id: str, logs: Sequence[Path]) -> Iterator[str]:
    found = [
        f"{path.stem}: {line}"
        for path in logs
        for line in path.read_text(errors="replace").splitlines()
        if job_id in line
    ]
    yield from found[:_MOST_LINES]
