"""What workers have counted, in Redis: how it adds up, how long it is kept, and how much memory it takes."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.conftest import StartRedis
from tests.redis_programs import PROGRAMS, running
from worker import Broker
from worker.broker.metrics import RESOLUTIONS, Measurements, MetricsStore
from worker.broker.queue_state import QueueInspector
from worker.metrics.counts import BOUNDS, BUSY, LANES, OUTCOMES, RAN, WAITED, decode, encode
from worker.metrics.meter import ALL_TASKS, OTHER_TASKS, WAITED_SUM, Meter
from worker.metrics.reader import HOUR, MetricsReader
from worker.metrics.records import WorkerState, encode_report

QUEUE = "arq:queue"
ACL_PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "redis-with-sentinel-cluster-tls-or-acl.md"


def row(**lanes: int) -> list[int]:
    """A row with these numbers, by outcome."""
    return [lanes.get(name, 0) for name in OUTCOMES] + [0] * (LANES - len(OUTCOMES))


async def stored(broker: Broker, task: str, queue: str = QUEUE) -> tuple[int, ...]:
    """The row of the present minute."""
    _, [[raw]] = await MetricsStore(broker.connections).buckets(queue, 60, 1, [task])
    assert raw is not None
    decoded = decode(raw)
    assert decoded is not None
    return decoded


@pytest.mark.parametrize("program", PROGRAMS)
async def test_rows_of_any_width_add_up(program: str) -> None:
    """One, two and four bytes a number; what passes 2³² stays there."""
    with running(program) as server:
        broker = Broker(server.url)
        store, total = MetricsStore(broker.connections), 0
        for count in (3, 255, 1, 65535, 2, 1_000_000, 7):
            added = row(completed=count, abandoned=1)
            await store.add(QUEUE, "p", LANES, Measurements({"a": encode(added), "b": encode(row(failed=count))}))
            total += count
            if (await stored(broker, "a"))[0] != total:  # a minute has begun
                pytest.skip("a minute began while the test ran")
        assert (await stored(broker, "a"))[OUTCOMES.index("abandoned")] == 7
        assert (await stored(broker, "b"))[OUTCOMES.index("failed")] == total
        await store.add(QUEUE, "p", LANES, Measurements({"a": encode(row(completed=2**32 - 1))}))
        assert (await stored(broker, "a"))[0] == 2**32 - 1
        await broker.close()


async def test_more_tasks_than_one_round_trip_takes_are_counted(broker: Broker) -> None:
    """Each once."""
    meter = Meter([f"task-{number}" for number in range(1000)])
    for number in range(1000):
        meter.row(QUEUE, f"task-{number}")[0] += number + 1
    changes = meter.changes(QUEUE)
    rows = {name: encode(each) for name, each in changes.rows.items()}
    await MetricsStore(broker.connections).add(QUEUE, "p", LANES, Measurements(rows))
    found = await MetricsReader(broker).by_task(HOUR, [QUEUE])
    assert {each.task: each.total.completed for each in found} == {f"task-{n}": n + 1 for n in range(1000)}
    (series,) = await MetricsReader(broker).throughput(HOUR, [QUEUE])
    assert series.total.completed == sum(range(1001))


async def test_a_hundred_busy_tasks_take_twenty_megabytes_at_most(broker: Broker, observer: Any) -> None:
    """A hundred jobs a second of each, in every bucket, with times all over the histograms."""
    store = MetricsStore(broker.connections)
    names = [f"tasks.reports.department.build_{number:03}" for number in range(100)]
    for resolution, kept in RESOLUTIONS.items():
        for bucket in range(kept // resolution):
            rows = {name: encode(_busy(100 * resolution)) for name in (*names, ALL_TASKS, OTHER_TASKS)}
            await store.add(QUEUE, "p", LANES, Measurements(rows))
            # It becomes a bucket of the past: the server's clock cannot be set.
            (written,) = observer.keys(f"{QUEUE}:metrics:{resolution * 1000}:[0-9]*")
            observer.rename(written, f"past:{resolution}:{bucket}")
            observer.delete(*observer.keys(f"{QUEUE}:metrics:*"))
    keys = observer.keys("past:*")
    assert len(keys) == 480 + 432
    taken = sum(observer.memory_usage(key, samples=0) for key in keys)
    assert 10_000_000 < taken < 20_000_000


def _busy(jobs: int) -> list[int]:
    """A row of so many jobs, whose times are spread over all buckets."""
    counts = row(completed=jobs * 9 // 10, failed=jobs // 20, retried=jobs // 20)
    counts[BUSY] = jobs // 10
    weights = [math.exp(-((place - 9) ** 2) / 18) for place in range(len(BOUNDS) + 1)]
    for first in (WAITED, RAN):
        for place, weight in enumerate(weights):
            counts[first + place] = max(round(jobs * weight / sum(weights)), 1)
    return counts


async def test_the_rest_of_a_second_is_told_later(broker: Broker) -> None:
    """Short jobs add up to seconds."""
    meter = Meter(["short"])
    for _ in range(10):
        meter.row(QUEUE, "short")[BUSY] += 350
        meter.row(QUEUE, "short")[WAITED_SUM] += 1
        changes = meter.changes(QUEUE)
        rows = {name: encode(each) for name, each in changes.rows.items()}
        await MetricsStore(broker.connections).add(QUEUE, "p", LANES, Measurements(rows))
        meter.confirm(changes)
    (series,) = await MetricsReader(broker).throughput(HOUR, [QUEUE])
    assert series.total.busy == 3


async def test_a_hash_tagged_queue_keeps_its_metrics_in_its_slot(broker: Broker, observer: Any) -> None:
    """Every key has the tag, so a cluster has all of them on one node."""
    record = encode_report({"id": "w", "state": "working", "queues": ["{mail}"], "started_at": 0, "pool": None}, [])
    measurements = Measurements({"a": encode(row(completed=1))}, 1, b"[]", ["a"], record)
    await MetricsStore(broker.connections).add("{mail}", "p", LANES, measurements)
    keys = observer.keys("*")
    assert len(keys) == 6
    assert all(key.startswith("{mail}:metrics:") for key in keys)


async def test_a_worker_that_has_died_is_unwell_for_a_minute(broker: Broker, observer: Any) -> None:
    """Then its record is gone. Records that cannot be read are left out."""
    store, reader = MetricsStore(broker.connections), MetricsReader(broker)
    fields = {"id": "w", "state": "working", "queues": [QUEUE], "started_at": 0, "pool": None, "from_the_future": 1}
    jobs = [("j1", "send", QUEUE, 2, 1_700_000_000_000, "more")]
    await store.add(QUEUE, "dead", LANES, Measurements({}, record=encode_report(fields, jobs)))
    await store.add(QUEUE, "odd", LANES, Measurements({}, record=b'{"state": "asleep"}'))
    (found,) = await reader.workers([QUEUE])
    assert (found.state, found.jobs[0].id, found.jobs[0].attempt) == (WorkerState.WORKING, "j1", 2)
    observer.zadd(f"{QUEUE}:metrics:workers", {"dead": observer.zscore(f"{QUEUE}:metrics:workers", "dead") - 20_000})
    (found,) = await reader.workers([QUEUE])
    assert (found.state, found.is_silent) == (WorkerState.UNWELL, True)
    assert found.why.startswith("no report for 20 s")
    assert 55_000 < observer.pttl(f"{QUEUE}:metrics:worker:dead") <= 60_000


async def test_records_of_one_worker_in_several_queues_are_joined(broker: Broker) -> None:
    """Each queue has the jobs of its own."""
    fields = {"id": "w", "state": "working", "queues": [QUEUE, "low"], "started_at": 0, "pool": None}
    for queue in (QUEUE, "low"):
        record = encode_report(fields, [(f"job of {queue}", "send", queue, 1, 0)])
        await MetricsStore(broker.connections).add(queue, "p", LANES, Measurements({}, record=record))
    (found,) = await MetricsReader(broker).workers([QUEUE, "low"])
    assert {job.id for job in found.jobs} == {"job of arq:queue", "job of low"}
    assert found.queues == (QUEUE, "low")


async def test_the_rights_of_a_worker_are_enough_to_measure(own_redis: StartRedis) -> None:
    """The Redis user that docs/explanation/engine.md describes. They are enough for the exporter, too."""
    server = own_redis()
    rule = re.search(r"ACL SETUSER worker on >password (.+?)```", ACL_PAGE.read_text(), re.DOTALL)
    assert rule is not None
    rights = rule[1].replace("\\\n", " ").split()
    with redis.Redis.from_url(server.url) as admin:
        admin.execute_command("ACL", "SETUSER", "worker", "on", ">password", *rights)
    broker = Broker(server.url.replace("redis://", "redis://worker:password@"))
    store, reader = MetricsStore(broker.connections), MetricsReader(broker)
    record = encode_report({"id": "w", "state": "working", "queues": [QUEUE], "started_at": 0, "pool": None}, [])
    measurements = Measurements({"": encode(row(completed=2)), "a": encode(row(completed=2))}, 1, b"[]", ["a"], record)
    await store.add(QUEUE, "p", LANES, measurements)
    (series,) = await reader.throughput(HOUR, [QUEUE])
    assert series.total.completed == 2
    assert [each.task for each in await reader.by_task(HOUR, [QUEUE])] == ["a"]
    assert [worker.id for worker in await reader.workers([QUEUE])] == ["w"]
    assert await reader.successes(QUEUE)
    assert await reader.latest(QUEUE) == []
    await store.forget_worker(QUEUE, "p")
    assert (await QueueInspector(broker.connections).snapshot(QUEUE)).depth == 0
    await broker.close()
