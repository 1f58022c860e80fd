"""Scheduled tasks: listed with their slots, run now, paused and resumed, on real servers."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from arq import cron as arq_cron

from tests.servers import Observer
from tests.waiting import AT_ONCE, eventually
from tests.worker.admin.conftest import ACTOR
from tests.worker.engine.conftest import StartWorker
from worker import Broker, cron, current_job, task
from worker.admin.audit import AuditLog
from worker.admin.deployment import Deployment
from worker.admin.schedules import ScheduleAdmin
from worker.broker.cron_slots import CronSlots
from worker.broker.records import series_name
from worker.cron import from_arq
from worker.errors import LedgerError

RUNS: list[str] = []

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture(autouse=True)
def _no_runs() -> None:
    RUNS.clear()


@cron("* * * * * *", misfire="all")
async def tick() -> None:
    RUNS.append(current_job().job_id)


@cron("0 3 * * *", timezone="Europe/Berlin")
async def nightly() -> None:
    RUNS.append("nightly")
    raise RuntimeError("no disk")


@task
async def plain() -> None: ...


async def refresh(ctx: dict[Any, Any]) -> None: ...


TASKS = {each.name: each for each in (tick, nightly, plain)}


@pytest.fixture
def schedules(deployment: Deployment) -> ScheduleAdmin:
    return ScheduleAdmin(TASKS, deployment)


async def test_the_list_tells_next_and_last_slots_and_how_they_went(
    schedules: ScheduleAdmin, start: StartWorker
) -> None:
    """The latest slot comes first."""
    async with start(tick):
        await eventually(lambda: len(RUNS) >= 3)
    ours, night = await schedules.list(upcoming=2, past=2)
    assert (ours.task, ours.expression, ours.queue) == (tick.name, "* * * * * *", "arq:queue")
    assert [slot.state for slot in ours.last_slots] == ["done", "done"]
    assert ours.last_slots[0].at - ours.last_slots[1].at == timedelta(seconds=1)
    assert ours.last_slots[0].job_id in RUNS
    assert ours.last_slots[0].finished_at is not None
    assert (night.description, night.timezone) == ("At 03:00 every day (Europe/Berlin)", "Europe/Berlin")
    first, second = night.next_slots
    assert datetime.now(UTC) < first < second < first + timedelta(hours=26)
    assert night.last_slots == ()


async def test_a_paused_schedule_queues_no_slot_and_makes_up_for_none(
    schedules: ScheduleAdmin, start: StartWorker, observer: Any
) -> None:
    """Although its misfire policy is "all", also after a restart of the worker, and after a loss of Redis."""
    await schedules.pause(tick.name, actor=ACTOR)
    async with start(tick):
        await asyncio.sleep(2.2)
        observer.flushdb()
        await asyncio.sleep(1.2)
        assert RUNS == []
    (info, _) = await schedules.list()
    assert info.pause is not None
    assert (info.pause.actor, info.pause.until) == (ACTOR, None)
    await asyncio.sleep(1.1)  # slots that pass while no worker runs
    assert await schedules.resume(tick.name, actor=ACTOR)
    resumed_at = datetime.now(UTC)
    async with start(tick):
        await eventually(lambda: RUNS, timeout=AT_ONCE)
        await asyncio.sleep(0.5)
    moments = [int(job_id.rpartition(":")[2]) / 1000 for job_id in RUNS]
    assert min(moments) >= resumed_at.timestamp() - 0.5
    assert not await schedules.resume(tick.name, actor=ACTOR)


async def test_a_resumed_schedule_with_an_id_of_its_own_skips_the_pause_too(
    deployment: Deployment, broker: Broker
) -> None:
    """Its slots are a series of their own, of which the pause is recorded as passed."""
    shared = from_arq(arq_cron(refresh, hour=3, job_id="refresh"))
    schedules = ScheduleAdmin({shared.name: shared}, deployment)
    await schedules.pause(shared.name, actor=ACTOR)
    assert await schedules.resume(shared.name, actor=ACTOR)
    last = await CronSlots(broker.connections).last(broker.name)
    assert last.keys() == {series_name(shared.name, "refresh")}


async def test_a_pause_with_an_end_ends_by_itself(schedules: ScheduleAdmin, start: StartWorker) -> None:
    """As a queue's."""
    await schedules.pause(tick.name, actor=ACTOR, until=datetime.now(UTC) + timedelta(seconds=1))
    async with start(tick):
        await eventually(lambda: RUNS, timeout=AT_ONCE)


async def test_a_scheduled_task_is_run_now(
    schedules: ScheduleAdmin, deployment: Deployment, start: StartWorker, postgres: Observer
) -> None:
    """The job and its audit row are one transaction."""
    await schedules.pause(nightly.name, actor=ACTOR)
    job = await schedules.run_now(nightly.name, actor=ACTOR)
    assert await postgres.fetchval("SELECT state FROM tandem_jobs") == "pending"
    entry, _ = await AuditLog(deployment).read()
    assert (entry.action, entry.subject, entry.detail) == ("schedule.run_now", nightly.name, {"job": job.job_id})
    async with start(nightly):
        with pytest.raises(Exception, match="no disk"):
            await job.result(timeout=AT_ONCE)
    assert RUNS == ["nightly"]


async def test_without_a_ledger_a_schedule_runs_now_and_cannot_be_paused(
    without_ledger: Deployment, start: StartWorker
) -> None:
    """The pause would be lost with Redis."""
    schedules = ScheduleAdmin(TASKS, without_ledger)
    with pytest.raises(LedgerError, match="set DATABASE_URL"):
        await schedules.pause(tick.name, actor=ACTOR)
    await schedules.run_now(tick.name, actor=ACTOR)
    async with start(tick, ledger=None):
        await eventually(lambda: RUNS, timeout=AT_ONCE)
    await eventually(lambda: RUNS)
    (info, _) = await schedules.list()
    assert [slot.state for slot in info.last_slots] == ["unknown"]


async def test_an_unknown_schedule_is_refused(schedules: ScheduleAdmin) -> None:
    """A plain task is none."""
    for act in (schedules.pause, schedules.resume, schedules.run_now):
        with pytest.raises(KeyError):
            await act(plain.name, actor=ACTOR)
