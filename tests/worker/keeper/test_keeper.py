"""The keeper process: which leases it renews, what it costs, and what happens where it cannot be started."""

import asyncio
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from tests.tls import CERTIFICATE, in_tls
from tests.waiting import eventually
from tests.worker.new_jobs import new_job
from worker import Broker
from worker.broker.records import Completion
from worker.keeper.keeper import Keeper
from worker.keeper.table import LeaseTable

QUEUE, TOKEN, THEIRS = "arq:queue", "o" * 28, "t" * 28
LEASE = 1.0
NEVER = 3600.0  # seconds of silence: it is this process that would be killed

Start = Callable[..., Keeper]


@pytest.fixture
def table() -> LeaseTable:
    """A table of a worker that has just kept all leases."""
    table = LeaseTable(8)
    table.thread_is_alive(time.monotonic())
    table.leases_are_kept(time.monotonic())
    return table


@pytest.fixture
def start(table: LeaseTable, redis_url: str) -> Iterator[Start]:
    """Starts a keeper of `table`, for the length of the test."""
    started: list[Keeper] = []

    def start(url: str = redis_url, lease: float = LEASE) -> Keeper:
        keeper = Keeper(table, url, [QUEUE], lease=lease, silence=NEVER)
        started.append(keeper)
        keeper.start()
        return keeper

    yield start
    for keeper in started:
        keeper.dismiss()


async def claim(broker: Broker, table: LeaseTable, *ids: str, until: float = NEVER, lease: float = LEASE) -> None:
    """Claim new jobs, and tell the keeper."""
    await broker.enqueue([new_job(job_id, b"{}", QUEUE) for job_id in ids])
    claims = await broker.claim(QUEUE, TOKEN, round(lease * 1000), len(ids))
    table.add(0, TOKEN, [claim.raw_id for claim in claims.jobs], time.monotonic() + until)


def holder(observer: Any, job_id: str) -> str:
    return str(observer.get(f"arq:in-progress:{job_id}"))


class TestRenewal:
    async def test_the_keeper_renews_leases_up_to_each_jobs_limit_while_the_heartbeat_is_silent(
        self, broker: Broker, observer: Any, table: LeaseTable, start: Start
    ) -> None:
        """After its limit a job can be claimed by another worker."""
        start()
        await claim(broker, table, "short", until=1.5 * LEASE)
        await claim(broker, table, "long")
        await eventually(lambda: not observer.exists("arq:in-progress:short"), timeout=5 * LEASE)
        assert holder(observer, "long").startswith(TOKEN)
        assert (await broker.claim(QUEUE, THEIRS, 1000, 10)).jobs[0].raw_id == b"short"

    async def test_the_keeper_renews_no_lease_while_the_heartbeat_does(
        self, broker: Broker, observer: Any, table: LeaseTable, start: Start
    ) -> None:
        """The worker says in the table that it keeps its leases."""
        start()
        await claim(broker, table, "a")

        def is_lost() -> bool:
            table.leases_are_kept(time.monotonic())
            return not observer.exists("arq:in-progress:a")

        await eventually(is_lost, timeout=3 * LEASE)

    async def test_the_keeper_says_whether_redis_or_the_interpreter_was_slow(
        self, broker: Broker, table: LeaseTable, start: Start, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """The interpreter is blamed only where it gives no sign of life."""
        for is_alive, why in ((True, "Redis may have been slow"), (False, "code blocked its interpreter")):
            keeper = start()
            table.leases_are_kept(time.monotonic())
            await claim(broker, table, why)
            said: list[str] = []

            def has_said(is_alive: bool = is_alive, said: list[str] = said) -> bool:
                if is_alive:
                    table.thread_is_alive(time.monotonic())
                said.append(capfd.readouterr().err)
                return "meanwhile" in "".join(said)

            await eventually(has_said)
            assert f"{why}: the keeper renews" in "".join(said)
            keeper.dismiss()

    async def test_the_keeper_renews_neither_jobs_that_have_ended_nor_jobs_of_another_worker(
        self, broker: Broker, observer: Any, table: LeaseTable, start: Start
    ) -> None:
        """A lease that was lost does not come back, either."""
        start()
        await claim(broker, table, "finished", "lost", "taken", "kept")
        await broker.finish(QUEUE, [Completion(b"finished", TOKEN, "end")])
        observer.delete("arq:in-progress:lost")
        observer.set("arq:in-progress:taken", f"{THEIRS}:1", px=round(3 * LEASE * 1000))
        await eventually(lambda: not observer.exists("arq:in-progress:taken"), timeout=5 * LEASE)
        assert holder(observer, "kept").startswith(TOKEN)
        assert not observer.exists("arq:in-progress:finished", "arq:in-progress:lost", "arq:job:finished")
        assert observer.zscore(QUEUE, "finished") is None


class TestDismissal:
    async def test_a_dismissed_keeper_ends_and_leaves_the_workers_leases_as_they_are(
        self, broker: Broker, observer: Any, table: LeaseTable, start: Start
    ) -> None:
        """It is not started again."""
        keeper = start(lease=60.0)
        await eventually(lambda: table.keeper == keeper.pid)
        await claim(broker, table, "a", lease=60.0)
        process = psutil.Process(table.keeper)
        keeper.dismiss()
        keeper.look_after()
        assert not process.is_running()
        assert keeper.pid is None
        assert holder(observer, "a").startswith(TOKEN)

    async def test_a_keeper_can_be_dismissed_before_it_has_started_to_work(self, start: Start) -> None:
        """It has not yet read which leases to keep."""
        start().dismiss()


class TestFailedStart:
    @pytest.mark.parametrize(
        ("program", "why"), [("/not/there", "FileNotFoundError"), (shutil.which("false") or "", "ended with code 1")]
    )
    async def test_a_keeper_that_cannot_be_started_is_logged_once_and_tried_again(
        self,
        table: LeaseTable,
        start: Start,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
        program: str,
        why: str,
    ) -> None:
        """The log line says why."""
        caplog.set_level(logging.WARNING, "worker")
        monkeypatch.setattr(sys, "executable", program)
        monkeypatch.setattr("worker.keeper.keeper._FIRST_PAUSE", 0.01)
        keeper = start()

        def look_after() -> int:
            keeper._start_at = 0.0
            keeper.look_after()
            return len(caplog.records)

        await eventually(look_after)
        for _ in range(20):
            look_after()
        (said,) = [record.getMessage() for record in caplog.records]
        assert said.startswith("no keeper process (")
        assert why in said
        monkeypatch.undo()
        await eventually(lambda: look_after() and table.keeper == keeper.pid)


@pytest.mark.parametrize("how", ["plain", "TLS"])
async def test_a_keeper_takes_less_than_25_mb_and_1_percent_of_a_core(
    broker: Broker, observer: Any, table: LeaseTable, start: Start, redis_url: str, how: str
) -> None:
    """The memory includes shared pages; the core is measured while the worker keeps its leases itself."""
    async with in_tls(redis_url) as tls_url:
        keeper = start(f"{tls_url}?ssl_ca_certs={CERTIFICATE}" if how == "TLS" else redis_url)
        await claim(broker, table, *(f"job {number}" for number in range(50)))
        await asyncio.sleep(3 * LEASE)  # it has done all that it may ever do
        assert holder(observer, "job 49").startswith(TOKEN)
        assert keeper.pid is not None
        process = psutil.Process(keeper.pid)
        memory = process.memory_full_info()
        print(f"{memory.rss / 1e6:.1f} MB, of its own {memory.uss / 1e6:.1f} MB, {memory.pss / 1e6:.1f} MB by share")  # noqa: T201
        assert memory.rss < 25e6
        before, then = sum(process.cpu_times()[:2]), time.monotonic()
        while time.monotonic() - then < 4:
            table.leases_are_kept(time.monotonic())
            await asyncio.sleep(LEASE / 4)
        assert sum(process.cpu_times()[:2]) - before <= 0.01 * (time.monotonic() - then)
    assert os.getpid() == psutil.Process(keeper.pid).ppid()
