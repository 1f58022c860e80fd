"""A queue that moves to another Redis, as docs/how-to/move-a-queue-to-another-redis.md says."""

from pathlib import Path

import pytest
import redis

import db
from tests.commands import Command
from tests.conftest import StartRedis
from tests.lifecycle import job_tasks
from tests.servers import Observer
from tests.waiting import eventually
from worker import Broker, set_default_broker

JOBS = 30
SOON = 30.0  # seconds


@pytest.mark.usefixtures("database", "broker")
async def test_a_queue_moves_to_another_redis_while_jobs_run_and_each_has_one_effect(
    worker_settings: dict[str, str], own_redis: StartRedis, postgres: Observer, tmp_path: Path
) -> None:
    """Jobs of transactions, direct ones and delayed ones are enqueued before the move, and more of them after it."""
    old = worker_settings | {"WORKER_REGISTRY": "tests.lifecycle.job_tasks"}
    new = old | {"REDIS_URL": own_redis().url}
    expected = await enqueue("before")
    with Command("worker", "run", folder=tmp_path, environment=new) as workers:
        await workers.says("works on")
        expected |= await enqueue("between")
        moved = Broker(new["REDIS_URL"])
        set_default_broker(moved)
        expected |= await enqueue("after")
        with Command("worker", "run", "--burst", folder=tmp_path, environment=old) as last:
            assert await last.ends() == 0
        await eventually(lambda: written(postgres), timeout=SOON, equals=dict.fromkeys(expected, 1))
        await moved.close()
    assert redis.Redis.from_url(old["REDIS_URL"]).zcard("arq:queue") == 0


async def enqueue(when: str) -> set[str]:
    """Enqueue jobs in each way, and return what they will write."""
    words = {f"{when} {way} {number}" for way in ("direct", "transaction", "delayed") for number in range(JOBS)}
    for each in sorted(words):
        if "transaction" in each:
            async with db.scope():
                await job_tasks.add.enqueue(each)
        else:
            await job_tasks.add.using(delay=2 if "delayed" in each else 0).enqueue(each)
    return words


async def written(postgres: Observer) -> dict[str, int]:
    """How often each words were written."""
    rows = await postgres.fetch("SELECT words, count(*) AS times FROM note GROUP BY words")
    return {row["words"]: row["times"] for row in rows}
