"""The scheduler: one worker queues each slot, once; the misfire policy decides about slots missed while none ran."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from arq import cron as arq_cron
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.servers import Observer
from tests.waiting import eventually
from tests.worker.engine.conftest import StartWorker
from worker import Broker, cron, current_job, task
from worker.broker.cron_slots import CronSlots
from worker.broker.records import Completion, CronSlot, to_ms
from worker.client.options import TaskOptions
from worker.client.schedule import Misfire, Schedule
from worker.cron import from_arq, merge_schedules
from worker.engine import scheduler
from worker.engine.cron_series import CronSeries
from worker.engine.cron_slots import LedgerSlotHistory
from worker.engine.relay import Relay
from worker.engine.scheduler import Scheduler
from worker.engine.timetable import Timetable
from worker.ledger import FinalRow, Ledger, State
from worker.message import encode
from worker.new_job import NewJob, slot_id
from worker.task import Task

BERLIN = ZoneInfo("Europe/Berlin")
SPRING_FORWARD, FALL_BACK = datetime(2024, 3, 31, tzinfo=BERLIN), datetime(2024, 10, 27, tzinfo=BERLIN)
_STEP = timedelta(seconds=50)
QUEUE = "arq:queue"
TOKEN = "0" * 28


def hourly(misfire: Misfire = "skip", *, run_at_startup: bool = False) -> Task[Any, Any]:
    @cron("0 * * * *", timezone="Europe/Berlin", misfire=misfire, run_at_startup=run_at_startup)
    async def tick() -> None: ...

    return tick


@contextlib.asynccontextmanager
async def scheduling(broker: Broker, *tasks: Task[Any, Any], ledger: Ledger | None = None) -> AsyncIterator[Scheduler]:
    """A scheduler that runs for the length of a block."""
    one = Scheduler(broker, {task.name: task for task in tasks}, QUEUE, ledger)
    if isinstance(broker, Day):
        one._slots.now = broker.now  # type: ignore[method-assign] # the clock is what this test is about
    running = asyncio.create_task(one.run())
    try:
        yield one
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.fixture(params=["redis", "ledger"])
def ledger(request: pytest.FixtureRequest, database: object) -> Ledger | None:
    """Slots are kept in Redis alone, and in a ledger besides."""
    assert database is not None
    return Ledger() if request.param == "ledger" else None


class Day(Broker):
    """A queue whose server's clock is our own: a step further at each look, by as much as those of the others.

    It stands still after a number of steps.
    """

    def __init__(self, url: str, begin: datetime, barrier: asyncio.Barrier, offset: timedelta, steps: int) -> None:
        super().__init__(url)
        self._moments: Iterator[datetime] = (begin + offset + number * _STEP for number in range(steps))
        self._barrier = barrier

    async def now(self, queue: str) -> datetime:  # noqa: ARG002 - there is one clock
        await self._barrier.wait()
        moment = next(self._moments, None)
        if moment is None:
            await asyncio.Event().wait()
        assert moment is not None
        self.last = moment
        return self.last


async def run_what_is_due(broker: Broker, ran: Counter[str]) -> None:
    """Take and end all jobs, so that an id that came a second time would run a second time."""
    token = f"{random.getrandbits(112):028x}"
    jobs = (await broker.claim(QUEUE, token, 60_000, 100)).jobs
    ran.update(job.raw_id.decode() for job in jobs)
    if jobs:
        await broker.finish(QUEUE, [Completion(job.raw_id, token, "end") for job in jobs])


@pytest.mark.parametrize("day", [SPRING_FORWARD, FALL_BACK], ids=["spring", "autumn"])
async def test_five_workers_with_different_clocks_queue_each_slot_once(
    redis_url: str, broker: Broker, ledger: Ledger | None, day: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clocks are up to 90 s apart. One run for each hour of UTC, also when daylight saving time changes."""
    monkeypatch.setattr(scheduler, "_LONGEST_SLEEP", 0.0)
    begin, end = day.astimezone(UTC), (day + timedelta(days=1)).astimezone(UTC)
    barrier = asyncio.Barrier(5)
    before, steps = begin - timedelta(minutes=10), (end - begin + timedelta(minutes=50)) // _STEP
    clocks = [Day(redis_url, before, barrier, timedelta(seconds=s), steps) for s in (0, 90, 45, 13, 77)]
    ran: Counter[str] = Counter()
    async with contextlib.AsyncExitStack() as running:
        for clock in clocks:
            await running.enter_async_context(scheduling(clock, hourly(), ledger=ledger))
        while not all(hasattr(clock, "last") and clock.last > end for clock in clocks):
            await run_what_is_due(broker, ran)
            await asyncio.sleep(0.005)
    await run_what_is_due(broker, ran)
    for clock in clocks:
        await clock.close()
    hours = [begin + timedelta(hours=n) for n in range(round((end - begin) / timedelta(hours=1)) + 1)]
    assert len(hours) in (24, 26)
    assert ran == {f"cron:hourly.<locals>.tick:{hour.timestamp() * 1000:.0f}": 1 for hour in hours}


@pytest.mark.parametrize(("misfire", "runs"), [("skip", 0), ("once", 1), ("all", 3)])
async def test_misfire_decides_how_many_slots_are_made_up_for_after_no_worker_ran(
    broker: Broker, observer: Any, ledger: Ledger | None, misfire: Misfire, runs: int
) -> None:
    """Of three missed slots none, the last, or each of them is queued, once."""
    tick = hourly(misfire)
    now = datetime.fromtimestamp(observer.time()[0], UTC)
    hour = now.replace(minute=0, second=0, microsecond=0)
    observer.hset("arq:slots", tick.name, round((hour - timedelta(hours=2, minutes=30)).timestamp() * 1000))
    async with scheduling(broker, tick, ledger=ledger) as first, scheduling(broker, tick, ledger=ledger) as second:
        await eventually(lambda: first._seen and second._seen)
    missed = [f"cron:{tick.name}:{(hour - timedelta(hours=n)).timestamp() * 1000:.0f}" for n in (2, 1, 0)]
    assert observer.zrange(QUEUE, 0, -1) == missed[3 - runs :]


@pytest.mark.parametrize(("misfire", "runs"), [("once", 1), ("all", 1000)])
async def test_misfire_all_makes_up_for_the_last_thousand_slots_at_most(
    broker: Broker, observer: Any, misfire: Misfire, runs: int
) -> None:
    """ "once" makes up for the last one. The next worker makes up for none."""

    @cron("* * * * *", misfire=misfire)
    async def tick() -> None: ...

    begin = datetime.fromtimestamp(observer.time()[0], UTC) - timedelta(days=2)
    observer.hset("arq:slots", tick.name, round(begin.timestamp() * 1000))
    for _ in range(2):
        async with scheduling(broker, tick) as one:
            await eventually(partial(getattr, one, "_seen"))
    passed = [int(job_id.rpartition(":")[2]) / 1000 for job_id in observer.zrange(QUEUE, 0, -1)]
    assert runs <= len(passed) <= runs + 1  # a minute may pass meanwhile
    assert time.time() - max(passed) < 120
    assert max(passed) - min(passed) == (len(passed) - 1) * 60


@pytest.mark.parametrize("misfire", ["skip", "once", "all"])
async def test_a_flush_of_redis_neither_repeats_nor_loses_a_slot(
    broker: Broker, observer: Any, database: object, postgres: Observer, misfire: Misfire
) -> None:
    """The ledger holds the last slot that was queued."""
    assert database is not None
    ledger, tick = Ledger(), hourly(misfire)
    now = datetime.fromtimestamp(observer.time()[0], UTC)
    hour = now.replace(minute=0, second=0, microsecond=0)
    at = to_ms(hour - timedelta(hours=2))
    await LedgerSlotHistory(broker, ledger).put(
        QUEUE, [CronSlot(tick.name, at, slot_id(tick.name, at), encode(tick.name, b"{}", at))]
    )
    await postgres.execute("UPDATE tandem_jobs SET state = 'done'")
    observer.flushdb()
    for _ in range(2):
        async with scheduling(broker, tick, ledger=ledger) as one:
            await eventually(partial(getattr, one, "_seen"))
    missed = [slot_id(tick.name, to_ms(hour - timedelta(hours=n))) for n in (1, 0)]
    assert observer.zrange(QUEUE, 0, -1) == missed[{"skip": 2, "once": 1, "all": 0}[misfire] :]


async def test_repeated_flushes_of_redis_neither_repeat_nor_lose_a_slot(
    redis_url: str, broker: Broker, observer: Any, database: object, postgres: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five workers, and a flush every other hour, before or after its jobs have run: one run for each hour.

    The relay publishes again what a flush took before it ran, and nothing that has run.
    """
    assert database is not None
    monkeypatch.setattr(scheduler, "_LONGEST_SLEEP", 0.0)
    ledger, relay, begin = Ledger(), Relay(broker, Ledger(), [QUEUE]), datetime(2024, 5, 1, 0, 30, tzinfo=UTC)
    barrier = asyncio.Barrier(5)
    steps = timedelta(hours=8, minutes=20) // _STEP
    clocks = [Day(redis_url, begin, barrier, timedelta(seconds=s), steps) for s in (0, 90, 45, 13, 77)]
    ran: Counter[str] = Counter()
    flushed = 0

    async def work() -> None:
        """Run what is due; write its outcomes to the ledger before Redis, as an engine does."""
        token = f"{random.getrandbits(112):028x}"
        jobs = [job.raw_id.decode() for job in (await broker.claim(QUEUE, token, 60_000, 100)).jobs]
        ran.update(jobs)
        if jobs:
            tick_at = [(job, int(job.rpartition(":")[2])) for job in jobs]
            await ledger.complete([FinalRow(job, at, "tick", QUEUE, State.DONE) for job, at in tick_at])
            await broker.finish(QUEUE, [Completion(job.encode(), token, "end") for job in jobs])

    async with contextlib.AsyncExitStack() as running:
        for clock in clocks:
            await running.enter_async_context(scheduling(clock, hourly("all"), ledger=ledger))
        while not all(hasattr(clock, "last") and clock.last > begin + timedelta(hours=8) for clock in clocks):
            rows = await postgres.fetchval("SELECT count(*) FROM tandem_jobs")
            if rows > 2 * flushed:
                flushed += 1
                if flushed % 2:
                    await work()
                observer.flushdb()
            await relay._watch_epochs()
            await work()
            await asyncio.sleep(0.005)
    await relay._watch_epochs()
    await work()
    for clock in clocks:
        await clock.close()
    assert flushed >= 3
    hours = [begin + timedelta(minutes=30) + timedelta(hours=n) for n in range(8)]
    assert ran == {f"cron:hourly.<locals>.tick:{to_ms(hour)}": 1 for hour in hours}


async def test_the_first_worker_ever_makes_up_for_no_slots(broker: Broker, observer: Any) -> None:
    """Where no worker ever ran, nothing was missed; counting begins."""
    tick = hourly("all")
    async with scheduling(broker, tick) as one:
        await eventually(lambda: one._seen)
    assert observer.zcard(QUEUE) == 0
    assert observer.hexists("arq:slots", tick.name)


async def test_three_workers_run_a_task_of_every_second_once_a_second(start: StartWorker, broker: Broker) -> None:
    """No slot is left out, and none runs twice."""
    ran: list[int] = []

    @cron("* * * * * *")
    async def beat() -> None:
        ran.append(current_job().score // 1000)

    async with start(beat, id="a"), start(beat, id="b"), start(beat, id="c"):
        await eventually(lambda: len(ran) >= 3, timeout=6)
    assert ran == list(range(ran[0], ran[0] + len(ran)))


async def test_run_at_startup_is_queued_once_redis_is_up(
    broker: Broker, observer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first two enqueues fail."""
    tick = hourly(run_at_startup=True)
    enqueue, failures = broker.enqueue, [RedisConnectionError("away")] * 2

    async def fail_twice(entries: Any) -> Any:
        if failures:
            raise failures.pop()
        return await enqueue(entries)

    monkeypatch.setattr(broker, "enqueue", fail_twice)
    one = Scheduler(broker, {tick.name: tick}, QUEUE)
    for _ in range(2):
        with pytest.raises(RedisConnectionError):
            await one.run()
    running = asyncio.create_task(one.run())
    await eventually(lambda: observer.zcard(QUEUE) == 1)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def has_looked(one: Scheduler, seen: datetime) -> None:
    """Let a scheduler be as if it had looked at this time, and found nothing."""
    await one._prepare()
    one._seen, one._timetable = seen, Timetable()
    await one._timetable.add([(series, series.next_after(seen)) for series in one._series])


async def look_again(one: Scheduler, broker: Broker, away: timedelta) -> datetime:
    """Let a scheduler look for the first time in `away`; when it had looked before."""
    before = await CronSlots(broker.connections).now(QUEUE) - away
    await has_looked(one, before)
    running = asyncio.create_task(one.run())
    await eventually(lambda: one._seen != before)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return before


@pytest.mark.parametrize("misfire", ["skip", "once", "all"])
@pytest.mark.parametrize("away", [timedelta(seconds=4), timedelta(seconds=75), timedelta(minutes=12)])
async def test_slots_that_pass_while_a_worker_is_blocked_are_queued_late_under_every_misfire(
    broker: Broker,
    observer: Any,
    ledger: Ledger | None,
    caplog: pytest.LogCaptureFixture,
    misfire: Misfire,
    away: timedelta,
) -> None:
    """The loop was blocked, or Redis was down, for any length of time."""

    @cron("*/2 * * * * *", misfire=misfire)
    async def beat() -> None: ...

    one = Scheduler(broker, {beat.name: beat}, QUEUE, ledger)
    before = await look_again(one, broker, away)
    assert one._seen is not None
    passed = Schedule.parse("*/2 * * * * *").slots_between(before, one._seen)
    assert observer.zrange(QUEUE, 0, -1) == [slot_id(beat.name, to_ms(moment)) for moment in passed]
    assert ("queued late" in caplog.text) == (away > timedelta(minutes=1))


async def test_slots_that_pass_while_redis_hangs_run_as_soon_as_it_answers(
    start: StartWorker, observer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each runs with its own slot."""
    monkeypatch.setattr(scheduler, "_LATE", timedelta(seconds=1))
    ran: list[int] = []

    @cron("* * * * * *")
    async def beat() -> None:
        ran.append(round(current_job().enqueued_at.timestamp()))

    async with start(beat):
        await eventually(lambda: ran)
        stands_still_from = observer.time()[0]
        observer.client_pause(3500)
        await eventually(lambda: ran[-1] > stands_still_from + 4, timeout=30)
    assert sorted(set(ran)) == list(range(min(ran), max(ran) + 1))


async def test_a_worker_that_was_blocked_does_not_repeat_slots_that_another_has_queued(
    broker: Broker, observer: Any, ledger: Ledger | None, postgres: Observer
) -> None:
    """Also where the rows of those jobs have been pruned."""
    tick = hourly()
    now = await CronSlots(broker.connections).now(QUEUE)
    hour = now.replace(minute=0, second=0, microsecond=0)
    other, one = (Scheduler(broker, {tick.name: tick}, QUEUE, ledger) for _ in range(2))
    await look_again(other, broker, now - hour + timedelta(hours=4, seconds=1))
    assert observer.zcard(QUEUE) == 5
    observer.delete(QUEUE)
    await postgres.execute("DELETE FROM tandem_jobs")
    await look_again(one, broker, now - hour + timedelta(hours=9))
    assert observer.zcard(QUEUE) == 0


async def test_a_worker_that_was_blocked_queues_the_last_thousand_slots_at_most(
    broker: Broker, caplog: pytest.LogCaptureFixture, observer: Any
) -> None:
    """The earlier slots are logged as skipped."""

    @cron("* * * * * *")
    async def beat() -> None: ...

    before = await look_again(Scheduler(broker, {beat.name: beat}, QUEUE), broker, timedelta(minutes=20))
    assert observer.zcard(QUEUE) == 1000
    first = before.replace(microsecond=0) + timedelta(seconds=1)
    assert f"task {beat.name}: skipped its cron slots from {first:%Y-%m-%d %H:%M:%S} UTC until" in caplog.text


@pytest.mark.parametrize("misfire", ["skip", "once", "all"])
async def test_skipped_slots_are_logged_with_the_reason(
    broker: Broker, observer: Any, caplog: pytest.LogCaptureFixture, misfire: Misfire
) -> None:
    """From which slot to which, and which misfire policy skipped them."""
    tick = hourly(misfire)
    hour = (await CronSlots(broker.connections).now(QUEUE)).replace(minute=0, second=0, microsecond=0)
    observer.hset("arq:slots", tick.name, to_ms(hour - timedelta(hours=2, minutes=30)))
    async with scheduling(broker, tick) as one:
        await eventually(lambda: one._seen)
    told = [record.getMessage() for record in caplog.records if "skipped" in record.message]
    if misfire == "all":
        assert told == []
    else:
        (line,) = told
        assert (
            f"task {tick.name}: skipped its cron slots from {hour - timedelta(hours=2):%Y-%m-%d %H:%M:%S} UTC until"
            in line
        )
        assert line.endswith(f": no worker ran, and misfire is '{misfire}'")


@pytest.mark.parametrize(
    ("settings", "lands_in"),
    [
        ({"queues": "high,arq:queue"}, "arq:queue"),
        ({"queues": "high,low"}, "high"),
        ({"queue": "mail"}, "mail"),
    ],
)
async def test_a_scheduled_task_without_a_queue_goes_to_a_queue_that_its_worker_serves(
    start: StartWorker, broker: Broker, settings: dict[str, str], lands_in: str
) -> None:
    """A task that names no queue is queued where others are by default, if this worker serves that."""
    queues: list[str] = []

    @cron("0 0 1 1 *", run_at_startup=True)
    async def begin() -> None:
        queues.append(current_job().queue)

    async with start(begin, **settings):
        await eventually(lambda: queues == [lands_in])


async def test_workers_of_different_queues_queue_each_slot_once_between_them(
    broker: Broker, observer: Any, ledger: Ledger | None
) -> None:
    """They belong to one service and share its schedules."""
    for name in ("high", "low"):
        one = Scheduler(broker, {"tick": hourly()}, name, ledger)
        now = await CronSlots(broker.connections).now(name)
        await has_looked(one, now - timedelta(hours=2))
        await one._look(now)
    assert (observer.zcard("high"), observer.zcard("low")) == (2, 0)


async def test_a_scheduler_without_scheduled_tasks_returns(broker: Broker) -> None:
    """Without scheduled tasks there is nothing to do."""

    @task
    async def plain() -> None: ...

    await asyncio.wait_for(Scheduler(broker, {plain.name: plain}, QUEUE).run(), 1)


async def adopted(**when: Any) -> None: ...


def of_arq(*schedules: dict[str, Any], name: str = "cron:adopted") -> Task[Any, Any]:
    """The task of arq's `cron()` of one function, with these keywords of each schedule. UTC is the zone."""
    given: Any = adopted
    (merged,) = merge_schedules(from_arq(arq_cron(given, name=name, **each), timezone="UTC") for each in schedules)
    return merged


async def pass_slots(one: Scheduler, since: datetime, until: datetime) -> None:
    """Let a scheduler that looked at `since` look again at `until`."""
    await has_looked(one, since)
    await one._look(until)


MINUTE = timedelta(minutes=1)
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


async def test_a_schedule_with_a_job_id_adds_no_job_while_one_waits_or_runs(
    broker: Broker, observer: Any, ledger: Ledger | None
) -> None:
    """Also if another task has queued it. When it has ended, the next slot adds one again, under the same id."""
    every_minute = {"minute": None, "second": 0, "microsecond": 0, "job_id": "single"}
    one, other = (Scheduler(broker, {"a": of_arq(every_minute, name=name)}, QUEUE, ledger) for name in ("a", "b"))
    await pass_slots(one, NOON - MINUTE, NOON)
    await pass_slots(one, NOON, NOON + MINUTE)
    await pass_slots(other, NOON, NOON + MINUTE)
    assert observer.zrange(QUEUE, 0, -1, withscores=True) == [("single", to_ms(NOON))]
    (job,) = (await broker.claim(QUEUE, TOKEN, 60_000, 100)).jobs
    await pass_slots(one, NOON + MINUTE, NOON + 2 * MINUTE)
    assert (await broker.claim(QUEUE, TOKEN, 60_000, 100)).jobs == []
    if ledger is not None:
        await ledger.complete([FinalRow("single", to_ms(NOON), "a", QUEUE, State.DONE)])
    await broker.finish(QUEUE, [Completion(job.raw_id, TOKEN, "end")])
    assert observer.zcard(QUEUE) == 0
    await pass_slots(one, NOON, NOON + 2 * MINUTE)
    assert observer.zcard(QUEUE) == 0  # a worker that looks late adds no job for slots that have passed
    await pass_slots(one, NOON + 2 * MINUTE, NOON + 3 * MINUTE)
    assert observer.zrange(QUEUE, 0, -1) == ["single"]


async def test_a_schedule_with_a_job_id_waits_for_a_job_that_a_producer_has_queued(
    broker: Broker, observer: Any, ledger: Ledger | None, postgres: Observer
) -> None:
    await broker.enqueue([NewJob("single", b"{}", "cron:adopted", QUEUE, 1)])
    one = Scheduler(broker, {"a": of_arq({"second": None, "microsecond": 0, "job_id": "single"})}, QUEUE, ledger)
    await pass_slots(one, NOON, NOON + timedelta(seconds=3))
    assert observer.get("arq:job:single") == "{}"
    assert await postgres.fetchval("SELECT count(*) FROM tandem_jobs") == 0


async def test_a_slot_of_a_job_id_is_queued_once_by_several_workers_also_when_its_job_has_ended(
    broker: Broker, observer: Any, ledger: Ledger | None
) -> None:
    """And also if Redis has lost its memory meanwhile, if there is a ledger."""
    task = of_arq({"minute": None, "second": 0, "microsecond": 0, "job_id": "single"})
    one, other, third = (Scheduler(broker, {"a": task}, QUEUE, ledger) for _ in range(3))
    await pass_slots(one, NOON - MINUTE, NOON)
    (job,) = (await broker.claim(QUEUE, TOKEN, 60_000, 100)).jobs
    if ledger is not None:
        await ledger.complete([FinalRow("single", to_ms(NOON), task.name, QUEUE, State.DONE)])
    await broker.finish(QUEUE, [Completion(job.raw_id, TOKEN, "end")])
    await pass_slots(other, NOON - MINUTE, NOON)
    if ledger is not None:
        observer.flushdb()
        await pass_slots(third, NOON - 2 * MINUTE, NOON)
        (last,) = (await LedgerSlotHistory(broker, ledger).last([*CronSeries.of(task)], QUEUE)).values()
        assert last == NOON
    assert observer.zcard(QUEUE) == 0


async def test_schedules_of_one_task_queue_a_time_that_both_match_once(
    broker: Broker, observer: Any, ledger: Ledger | None
) -> None:
    """Those with ids of their own count for themselves."""
    task = of_arq(
        {"minute": {0, 20}, "microsecond": 0},
        {"minute": {0, 40}, "microsecond": 0},
        {"minute": 40, "microsecond": 0, "job_id": "x"},
        {"minute": 40, "microsecond": 0, "job_id": "y"},
    )
    for _ in range(2):
        await pass_slots(Scheduler(broker, {"a": task}, QUEUE, ledger), NOON - timedelta(seconds=1), NOON + 59 * MINUTE)
    at = [slot_id(task.name, to_ms(NOON + minutes * MINUTE)) for minutes in (0, 20, 40)]
    assert set(observer.zrange(QUEUE, 0, -1)) == {*at, "x", "y"}


async def test_a_schedule_that_is_not_unique_is_queued_by_each_worker(
    broker: Broker, observer: Any, ledger: Ledger | None
) -> None:
    """Once by each, also if a round is repeated. A worker that starts makes up for none."""
    task = of_arq({"minute": 0, "microsecond": 0, "unique": False})
    one, other, new = (Scheduler(broker, {"a": task}, QUEUE, ledger) for _ in range(3))
    for each in (one, other, one):
        await pass_slots(each, NOON - MINUTE, NOON)
    await new._prepare()
    await new._look(NOON)
    found = observer.zrange(QUEUE, 0, -1, withscores=True)
    assert [score for _, score in found] == [to_ms(NOON)] * 2
    assert all(job_id.startswith(f"{slot_id(task.name, to_ms(NOON))}:") for job_id, _ in found)


async def test_a_startup_job_has_the_job_id_of_its_schedule(broker: Broker, observer: Any) -> None:
    """So two workers that start together run it once."""
    task = of_arq({"month": 1, "day": 1, "job_id": "single", "run_at_startup": True})
    async with scheduling(broker, task) as one, scheduling(broker, task) as other:
        await eventually(lambda: one.has_begun and other.has_begun)
    assert observer.zrange(QUEUE, 0, -1) == ["single"]


async def test_workers_run_a_schedule_with_a_job_id_one_at_a_time(start: StartWorker) -> None:
    running, most, ids = 0, 0, set()

    async def slow() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        ids.add(current_job().job_id)
        await asyncio.sleep(1.5)
        running -= 1

    schedule = replace(Schedule.parse("* * * * * *"), job_id="single")
    task: Task[Any, Any] = Task(slow, "slow", TaskOptions(keep_result=0), schedules=(schedule,))
    async with start(task, id="a"), start(task, id="b"):
        await asyncio.sleep(4.5)
    assert (most, ids) == (1, {"single"})


def every(number: int) -> Task[Any, Any]:
    """One of many tasks with a minute and an hour of its own, in a zone with summer time."""

    async def nothing() -> None: ...

    schedule = Schedule.parse(f"{number % 60} {number % 24} * * *", timezone="Europe/Berlin")
    return Task(nothing, f"t{number}", TaskOptions(), schedules=(schedule,))


class CountingSlots(LedgerSlotHistory):
    """Counts how often the records are read, and how many names were asked for."""

    reads = 0
    names = 0

    async def last(self, series: Any, queue: str) -> Any:
        self.reads += 1
        self.names += len(series)
        return await super().last(series, queue)


async def test_the_first_look_reads_the_records_of_all_tasks_at_once(
    broker: Broker, observer: Any, database: object
) -> None:
    """One read for each queue, whatever the number of tasks; and one statement for 500 of them."""
    assert database is not None
    tasks = {f"t{number}": every(number) for number in range(1100)}
    one = Scheduler(broker, tasks, QUEUE, Ledger())
    one._slots = slots = CountingSlots(broker, Ledger())
    now = await CronSlots(broker.connections).now(QUEUE)
    await one._prepare()
    await one._look(now)
    assert (slots.reads, slots.names) == (1, 1100)
    assert observer.hlen("arq:slots") == 1100
    assert one._timetable.first == min(each.next_after(now) for each in one._series)


async def test_a_look_computes_only_the_slots_that_have_passed(
    broker: Broker, observer: Any, ledger: Ledger | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a thousand tasks of which one is due, one schedule is asked for its next slot."""
    asked: list[str] = []
    next_after = CronSeries.next_after

    def counted(series: CronSeries, moment: datetime) -> datetime:
        asked.append(series.task.name)
        return next_after(series, moment)

    one = Scheduler(broker, {f"t{number}": every(number) for number in range(1000)}, QUEUE, ledger)
    await has_looked(one, NOON)
    monkeypatch.setattr(CronSeries, "next_after", counted)
    first = one._timetable.first
    assert first is not None
    due = [each.task.name for each in one._series if next_after(each, NOON) == first]
    await one._look(first - timedelta(microseconds=1))
    assert asked == []
    await one._look(first)
    assert sorted(asked) == sorted(due)
    assert observer.zcard(QUEUE) == len(due) > 0


async def test_slots_that_could_not_be_queued_are_queued_by_the_next_look(
    broker: Broker, observer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis was away in the look that found them: none is lost, and each runs once."""
    one = Scheduler(broker, {"tick": hourly()}, QUEUE)
    await has_looked(one, NOON - MINUTE)
    put = one._slots.put

    async def fail(queue: str, slots: Any) -> None:
        await put(queue, [])
        raise RedisConnectionError("away")

    monkeypatch.setattr(one._slots, "put", fail)
    for look in (NOON, NOON + MINUTE):
        with pytest.raises(RedisConnectionError):
            await one._look(look)
    monkeypatch.undo()
    await one._look(NOON + 2 * MINUTE)
    await one._look(NOON + 61 * MINUTE)
    name = hourly().name
    assert observer.zrange(QUEUE, 0, -1) == [slot_id(name, to_ms(NOON + n * 60 * MINUTE)) for n in (0, 1)]


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe"])
async def test_looks_at_any_times_find_the_slots_that_a_schedule_has(broker: Broker, observer: Any, zone: str) -> None:
    """However the looks lie, through changes of the clock, also if the clock of Redis goes back: each slot once."""
    chance = random.Random(zone)
    expressions = ("30 * * * *", "15 2 * * *", "0 0,12 * * *", "30 1 * * *", "*/20 1-3 * * *")
    schedules = {f"t{n}": Schedule.parse(expression, timezone=zone) for n, expression in enumerate(expressions)}

    async def nothing() -> None: ...

    tasks: dict[str, Task[Any, Any]] = {
        name: Task(nothing, name, TaskOptions(), schedules=(each,)) for name, each in schedules.items()
    }
    for begin in (datetime(2024, month, day, tzinfo=UTC) for month, day in ((3, 30), (10, 26), (4, 6))):
        observer.flushdb()
        one, moment = Scheduler(broker, tasks, QUEUE), begin
        await has_looked(one, begin)
        while moment < begin + timedelta(days=2):
            moment += timedelta(seconds=chance.choice([-50, 0, 10, 59, 600, 4000]))
            await one._look(moment)
        end = one._timetable.first
        assert end is not None
        expected = {
            slot_id(name, to_ms(slot))
            for name, each in schedules.items()
            for slot in each.slots_between(begin, end - timedelta(seconds=1))
        }
        assert set(observer.zrange(QUEUE, 0, -1)) == expected
