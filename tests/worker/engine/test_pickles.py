"""Pickled jobs of stock arq producers: they are put aside, or run with their own values and are answered in kind."""

import asyncio
import os
import pickle
from collections import OrderedDict, namedtuple
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from arq.connections import ArqRedis
from arq.jobs import Job as StockJob
from arq.jobs import serialize_job
from arq.worker import JobExecutionFailed
from redis import Redis

from tests.worker.engine.conftest import StartWorker
from worker import Broker, Chunk, task
from worker.broker.records import now_ms
from worker.engine.pickles import Glimpse, dump_result, glimpse
from worker.errors import TriesExhaustedError
from worker.ledger import Ledger
from worker.ledger.admin import JobAdmin, Key

Pair = namedtuple("Pair", "left right")  # noqa: PYI024 - what old code pickles

VALUES: dict[str, Any] = {
    "a time": time(9, 30, tzinfo=ZoneInfo("Europe/Berlin")),
    "a date": date(2026, 1, 2),
    "a datetime": datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=ZoneInfo("Europe/Berlin")),
    "a timedelta": timedelta(days=1, microseconds=1),
    "a tuple": (1, (2, 3)),
    "a named tuple": Pair(1, 2),
    "a set": {1, 2},
    "bytes": b"\xff\x00",
    "an ordered dict": OrderedDict(b=1, a=2),
    "a dict by numbers": {1: "one"},
    "a complex number": 1j,
}
ARRIVED: list[Any] = []


class OutOfStockError(Exception):
    """An error of a project's own."""


class UnloadableError(Exception):
    """One that can be pickled, but not loaded."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


class Bomb:
    """A pickle that runs code where it is loaded."""

    def __reduce__(self) -> Any:
        return (os.abort, ())


@task
async def keep(value, other=None):  # type: ignore[no-untyped-def]
    ARRIVED.append((value, other))


@task
async def typed(pair: tuple[int, int], at: datetime, numbers: list[int], raw: bytes) -> None:
    ARRIVED.append((pair, at, numbers, raw))


@task
async def pair_of(number: int) -> tuple[int, date]:
    return number, date(2026, 1, 2)


@task
async def fail(how: str) -> None:
    errors = {"own": OutOfStockError("none left"), "unloadable": UnloadableError(1, 2), "exit": SystemExit(3)}
    raise errors.get(how) or KeyError(how)


@pytest.fixture
async def stock(redis_url: str) -> AsyncIterator[ArqRedis]:
    """A stock arq client as most projects have it: it pickles."""
    client = ArqRedis.from_url(redis_url)
    client.default_queue_name = "arq:queue"
    client.expires_extra_ms = 86_400_000
    yield client
    await client.aclose()


async def enqueued(stock: ArqRedis, name: str, *args: Any, **kwargs: Any) -> StockJob:
    job = await stock.enqueue_job(name, *args, **kwargs)
    assert job is not None
    return job


class TestGlimpse:
    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    @pytest.mark.parametrize("try_", [None, 3])
    def test_the_task_and_time_of_arqs_pickle_are_read_without_loading_it(
        self, protocol: int, try_: int | None
    ) -> None:
        """Also if an argument would run code when it is loaded."""
        moment = now_ms()
        raw = serialize_job(
            "send", (Bomb(), b"x" * 5000), {"y": 7}, try_, moment, serializer=lambda job: pickle.dumps(job, protocol)
        )
        assert glimpse(raw) == Glimpse("send", moment)

    def test_what_is_not_found_in_a_pickle_is_none(self) -> None:
        """No pickle, no job, a broken one, and one whose key "et" is also an argument."""
        for raw in (b"", b"{}", b"\x80", b"\x80garbage", pickle.dumps([1]), pickle.dumps(Bomb())):
            assert glimpse(raw) == Glimpse(None, None)
        assert glimpse(serialize_job("f", ("f",), {"et": 5}, None, 7)) == Glimpse("f", None)


class TestDumpResult:
    def test_an_exception_that_the_reader_cannot_load_becomes_a_runtime_error_with_its_name(self) -> None:
        """Those whose class does not load, and those that would end the reader. For Tandem's it is arq's own."""
        for error, kind, text in (
            (TriesExhaustedError("gave up"), JobExecutionFailed, "worker.errors.TriesExhaustedError: gave up"),
            (UnloadableError(1, 2), RuntimeError, f"{__name__}.UnloadableError: 1 and 2"),
            (SystemExit(3), RuntimeError, "SystemExit: 3"),
        ):
            read = pickle.loads(dump_result({"r": error}))["r"]
            assert (type(read), str(read)) == (kind, text)

    def test_other_exceptions_stay_themselves(self) -> None:
        """Built-in ones, cancellations and a project's own."""
        for error in (KeyError("x"), asyncio.CancelledError(), OutOfStockError("none left")):
            read = pickle.loads(dump_result({"r": error}))["r"]
            assert (type(read), read.args) == (type(error), error.args)


@pytest.mark.usefixtures("database")
class TestPutAside:
    async def test_a_pickle_that_is_not_accepted_is_kept_in_the_ledger_and_runs_after_a_retry(
        self, start: StartWorker, stock: ArqRedis, broker: Broker, redis_url: str
    ) -> None:
        """The row has its bytes, its task and its enqueue time. Its producer then reads the result."""
        job = await enqueued(stock, "pair_of", 3)
        with Redis.from_url(redis_url) as client:
            raw = client.get(f"arq:job:{job.job_id}")
        async with start(pair_of, ledger=Ledger()) as worker:
            await worker.idle()
        (row,) = await JobAdmin().all_of(job.job_id)
        assert (row["state"], row["task"], row["payload"]) == ("failed", "pair_of", raw)
        assert row["error"].startswith("worker.errors.PayloadError: a pickle, which is not loaded")
        retried, rejections = await JobAdmin().retry([Key(job.job_id, row["enqueued_at"])], accept_pickle=True)
        assert rejections == []
        await broker.publish(retried)
        async with start(pair_of, ledger=Ledger(), accept_pickle=True) as worker:
            await worker.idle()
            assert await job.result(timeout=10) == (3, date(2026, 1, 2))
        (row,) = await JobAdmin().all_of(job.job_id)
        assert row["state"] == "done"

    async def test_a_pickle_whose_time_is_not_found_also_runs_once_after_a_retry(
        self, start: StartWorker, stock: ArqRedis, broker: Broker
    ) -> None:
        """Its row is known by the time at which it was put aside, and becomes done."""
        ARRIVED.clear()
        job = await enqueued(stock, "keep", {"et": 5})
        async with start(keep, ledger=Ledger()) as worker:
            await worker.idle()
        (row,) = await JobAdmin().all_of(job.job_id)
        retried, _ = await JobAdmin().retry([Key(job.job_id, row["enqueued_at"])], accept_pickle=True)
        await broker.publish(retried)
        async with start(keep, ledger=Ledger(), accept_pickle=True) as worker:
            await worker.idle()
        rows = await JobAdmin().all_of(job.job_id)
        assert ([row["state"] for row in rows], ARRIVED) == (["done"], [({"et": 5}, None)])

    async def test_bytes_that_are_no_job_at_all_are_kept_too(self, start: StartWorker, broker: Broker) -> None:
        """Another serializer of arq's may have written them."""
        await broker.redis.set("arq:job:packed", b"\x85\xa1t\xc0")
        await broker.redis.zadd("arq:queue", {"packed": 1})
        async with start(keep, ledger=Ledger()) as worker:
            await worker.idle()
        (row,) = await JobAdmin().all_of("packed")
        assert (row["state"], row["task"], row["payload"]) == ("failed", "<unknown>", b"\x85\xa1t\xc0")


class TestAccepted:
    @pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
    async def test_a_value_from_a_pickle_reaches_the_task_as_it_was(
        self, start: StartWorker, stock: ArqRedis, value: Any
    ) -> None:
        """Positional and named, with its type, and with its time zone."""
        ARRIVED.clear()
        await enqueued(stock, "keep", value, other=value)
        async with start(keep, accept_pickle=True) as worker:
            await worker.idle()
        assert [(repr(one), repr(other)) for one, other in ARRIVED] == [(repr(value), repr(value))]

    async def test_pickled_jobs_of_a_chunked_task_run_alone_and_are_answered_in_kind(
        self, start: StartWorker, stock: ArqRedis
    ) -> None:
        """A chunk's results are JSON."""

        @task(chunk=Chunk(wait=0.5))
        async def measure(calls: list[Pair]) -> list[tuple[int, int]]:
            ARRIVED.append(len(calls))
            return [(call.left, call.right) for call in calls]

        ARRIVED.clear()
        jobs = [await enqueued(stock, measure.name, left=number, right=2) for number in range(2)]
        async with start(measure, accept_pickle=True):
            assert [await job.result(timeout=10) for job in jobs] == [(0, 2), (1, 2)]
        assert ARRIVED == [1, 1]

    async def test_annotated_arguments_from_a_pickle_are_validated_and_keep_their_types(
        self, start: StartWorker, stock: ArqRedis
    ) -> None:
        """What fits stays as it was. What fits only as JSON does is converted, and what does not fit fails the job."""
        ARRIVED.clear()
        moment = VALUES["a datetime"]
        await enqueued(stock, "typed", Pair(1, 2), moment, [1], raw=b"\xff")
        await enqueued(stock, "typed", ["1", 2], "2026-01-02T00:00:00Z", {3}, raw=b"")
        wrong = await enqueued(stock, "typed", (1, 2, 3), moment, [1], raw=b"")
        async with start(typed, accept_pickle=True) as worker:
            await worker.idle()
        first, second = sorted(ARRIVED, key=lambda values: values[2])
        assert repr(first) == repr((Pair(1, 2), moment, [1], b"\xff"))
        assert second == ((1, 2), datetime(2026, 1, 2, tzinfo=UTC), [3], b"")
        with pytest.raises(RuntimeError, match="ValidationError"):
            await wrong.result(timeout=10)

    async def test_a_stock_producer_reads_results_errors_and_infos(self, start: StartWorker, stock: ArqRedis) -> None:
        """A result is what the task returned; an error is the task's own, as in arq."""
        job = await enqueued(stock, "pair_of", 3)
        failing = {how: await enqueued(stock, "fail", how) for how in ("own", "built-in", "unloadable", "exit")}
        async with start(pair_of, fail, accept_pickle=True) as worker:
            await worker.idle()
            info = await job.result_info()
            assert info is not None
            assert (info.result, info.success, info.function, info.args) == (
                (3, date(2026, 1, 2)),
                True,
                "pair_of",
                (3,),
            )
            assert (info.job_try, info.queue_name, info.job_id) == (1, "arq:queue", job.job_id)
            for how, kind in (("own", OutOfStockError), ("built-in", KeyError), ("exit", RuntimeError)):
                with pytest.raises(kind):
                    await failing[how].result(timeout=10)
            with pytest.raises(RuntimeError, match="UnloadableError: 1 and 2"):
                await failing["unloadable"].result(timeout=10)
            assert len(await stock.all_job_results()) == 5

    async def test_a_stock_producer_aborts_a_job(self, start: StartWorker, stock: ArqRedis) -> None:
        """`Job.abort` is answered as by a stock worker."""
        began = asyncio.Event()

        @task(name="wait")
        async def wait() -> None:
            began.set()
            await asyncio.Event().wait()

        job = await enqueued(stock, "wait")
        async with start(wait, accept_pickle=True):
            await asyncio.wait_for(began.wait(), 10)
            assert await job.abort(timeout=10) is True

    @pytest.mark.usefixtures("database")
    async def test_a_job_without_a_stock_producer_is_answered_in_json(self, start: StartWorker) -> None:
        """Also where pickles are accepted."""
        async with start(pair_of, accept_pickle=True):
            assert await (await pair_of.enqueue(3)).result(10) == (3, date(2026, 1, 2))
