"""A worker of many queues costs Redis about as many commands as a worker of one."""

import time
from functools import partial
from typing import Any

import pytest

from tests.waiting import eventually
from tests.worker.engine.conftest import StartWorker
from worker import Broker, task
from worker.broker.worker_records import WorkerRecords
from worker.metrics.reader import MetricsReader

_QUEUES = [*(f"q{number}" for number in range(99)), "{tagged}"]


@task
async def nothing() -> None: ...


def scripts_run(observer: Any) -> int:
    """The scripts that the server has run since its statistics were reset."""
    return int(observer.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0))


@pytest.mark.parametrize("queues", [["q0"], _QUEUES], ids=["one", "hundred"])
async def test_an_idle_worker_runs_a_few_scripts_a_second(start: StartWorker, observer: Any, queues: list[str]) -> None:
    """Claims, health records, descriptions and announcements, each for all queues at once: ten take two seconds."""
    async with start(nothing, queues=",".join(queues)):
        await eventually(lambda: observer.exists(f"{queues[-1]}:health-check"))
        observer.config_resetstat()
        begin = time.monotonic()
        await eventually(lambda: scripts_run(observer) >= 10)
        assert time.monotonic() - begin > 1.0


async def test_each_queue_has_the_records_of_its_worker(start: StartWorker, broker: Broker, observer: Any) -> None:
    """Its health in arq's form, with the depth of the queue; its description; its tasks."""
    observer.zadd("q7", {"later": 10**15})
    records, reader = WorkerRecords(broker.connections), MetricsReader(broker)
    async with start(nothing, queues=",".join(_QUEUES), id="w1"):
        for queue in ("q0", "q7", "{tagged}"):
            await eventually(partial(observer.exists, f"{queue}:health-check"))
            assert observer.get(f"{queue}:health-check").endswith(f" queued={int(queue == 'q7')}")
            assert "nothing" in await records.announced(queue)
            (worker,) = (await eventually(partial(reader.healthy_workers, [queue]))).values()
            assert (worker.id, len(worker.queues)) == ("w1", 100)
