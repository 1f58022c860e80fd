"""Traces: what OpenTelemetry's SDK exports of a request, its job, and the job's transaction; on real servers."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import redis
from opentelemetry import context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Sampler
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy import text
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

import db
from db.asgi import SessionMiddleware
from tests.commands import bare_environment
from tests.waiting import eventually
from tests.worker.engine.conftest import StartWorker
from worker import Job, Retry, current_job, task
from worker.ledger import Ledger
from worker.ledger.admin import JobAdmin
from worker.telemetry.tracing import active_tracing

pytestmark = pytest.mark.usefixtures("broker", "database")

TRACES: list[str] = []


class Spans:
    """What was exported, by name."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    def __getitem__(self, name: str) -> ReadableSpan:
        (span,) = self.all(name)
        return span

    def all(self, name: str = "") -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name.startswith(name)]

    @property
    def names(self) -> list[str]:
        return sorted(span.name for span in self.all())


def use(monkeypatch: pytest.MonkeyPatch, sampler: Sampler | None = None) -> Spans:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    return Spans(exporter)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    """A provider as a project sets it up, and what it exports."""
    TRACES.clear()
    return use(monkeypatch)


def id_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def trace_of(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    return f"{context.trace_id:032x}"


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


@contextlib.contextmanager
def request_span() -> Iterator[None]:
    with trace.get_tracer("app").start_as_current_span("GET /order", kind=SpanKind.SERVER):
        yield


@task
async def ship(session: db.AsyncSession, order: int) -> None:
    TRACES.append(f"{trace.get_current_span().get_span_context().trace_id:032x}")
    await session.execute(text("INSERT INTO note (words) VALUES (:words)"), {"words": f"order {order}"})
    if order < 10:
        await ship.enqueue(order + 10)


@task
async def idle() -> None: ...


@task(max_tries=3, retry_on=(LookupError,))
async def fail_thrice(session: db.AsyncSession) -> None:
    await session.execute(text("SELECT 1"))
    match current_job().attempt:
        case 1:
            raise Retry(defer=0.01)
        case 2:
            raise LookupError("no stock")
        case _:
            raise ValueError("no stock")


class TestOneTrace:
    async def test_a_request_its_job_and_the_jobs_job_are_one_trace_though_the_relay_publishes_them(
        self, start: StartWorker, spans: Spans, observer: redis.Redis
    ) -> None:
        """Redis loses the job after the COMMIT of the request. The row has the trace, in its payload and its column."""
        jobs: list[Job[Any]] = []

        async def order(_request: Request) -> Response:
            jobs.append(await ship.enqueue(1))
            return PlainTextResponse("ok")

        app = SessionMiddleware(Starlette(routes=[Route("/order", order)]))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
            with request_span():
                assert (await client.get("/order")).text == "ok"
        observer.flushall()
        async with start(ship, ledger=Ledger()):
            await eventually(lambda: len(spans.all("run ship")) == 2)
        request = spans["GET /order"]
        first, second = sorted(spans.all("run ship"), key=lambda span: span.start_time or 0)
        enqueued, enqueued_again = sorted(spans.all("enqueue ship"), key=lambda span: span.start_time or 0)
        assert {trace_of(span) for span in spans.all()} == {trace_of(request)} == set(TRACES)
        assert [parent_of(span) for span in (enqueued, first, enqueued_again, second)] == [
            id_of(span) for span in (request, enqueued, first, enqueued_again)
        ]
        assert [link.context.span_id for link in first.links] == [id_of(enqueued)]
        for run in (first, second):
            (transaction,) = [span for span in spans.all("transaction") if parent_of(span) == id_of(run)]
            (commit,) = [span for span in spans.all("COMMIT") if parent_of(span) == id_of(transaction)]
            assert (commit.start_time or 0) >= (transaction.start_time or 0)
            assert (commit.end_time or 0) <= (transaction.end_time or 0)
        (row,) = await JobAdmin().all_of(jobs[0].job_id)
        assert row["traceparent"].startswith(f"00-{trace_of(request)}-{id_of(enqueued):016x}-")

    async def test_each_way_to_enqueue_is_a_producer_span(self, start: StartWorker, spans: Spans) -> None:
        """Also from a thread, in a session of the caller's own, many at once, and straight to Redis."""
        with request_span():
            async with db.scope():
                session = await db.session()
                await idle.enqueue()
                await idle.enqueue_many([{}, {}])
                await idle.using(session=session).enqueue()
                await idle.using(transactional=False).enqueue()
                await asyncio.to_thread(idle.enqueue_sync)
        async with start(idle, ledger=Ledger()) as one:
            await one.idle()
        assert len(spans.all("enqueue idle")) == 5
        producers = {id_of(span) for span in spans.all("enqueue idle")}
        assert {parent_of(span) for span in spans.all("run idle")} == producers
        assert len(spans.all("run idle")) == 6
        assert {trace_of(span) for span in spans.all()} == {trace_of(spans["GET /order"])}

    async def test_a_job_of_no_trace_begins_one(self, start: StartWorker, spans: Spans) -> None:
        """One each: not that of the code that started the worker."""
        with request_span():
            async with start(idle) as one:
                await one.idle()
                jobs = [NewTrace(), NewTrace()]
                for job in jobs:
                    await job.enqueue()
                await one.idle()
        runs = spans.all("run idle")
        assert len({trace_of(span) for span in (*runs, spans["GET /order"])}) == 3
        assert [span.parent for span in runs] == [None, None]

    async def test_an_unsampled_trace_stays_unsampled(
        self, start: StartWorker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The decision of the first service travels with the job."""
        spans = use(monkeypatch, ALWAYS_OFF)
        with request_span():
            job = await idle.enqueue()
        kept = use(monkeypatch)
        async with start(idle) as one:
            await one.idle()
        info = await job.info()
        assert info is not None
        assert info.traceparent is not None
        assert int(info.traceparent[-2:], 16) & trace.TraceFlags.SAMPLED == 0
        assert (spans.names, kept.names) == ([], [])


class NewTrace:
    """A job that a process without traces has enqueued."""

    async def enqueue(self) -> None:
        provider, trace._TRACER_PROVIDER = trace._TRACER_PROVIDER, None
        token = context.attach(context.Context())
        try:
            await idle.enqueue()
        finally:
            context.detach(token)
            trace._TRACER_PROVIDER = provider


class TestAttributes:
    async def test_spans_have_the_attributes_of_the_messaging_conventions(
        self, start: StartWorker, spans: Spans
    ) -> None:
        """System, operation, queue and id; and Tandem's own."""
        async with start(ship, ledger=Ledger()) as one:
            job = await ship.enqueue(10)
            await one.idle()
        producer, consumer, commit = spans["enqueue ship"], spans["run ship"], spans["COMMIT"]
        assert (producer.kind, consumer.kind, commit.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER, SpanKind.CLIENT)
        common = {
            "messaging.system": "tandem",
            "messaging.destination.name": "arq:queue",
            "messaging.message.id": job.job_id,
            "tandem.task": "ship",
        }
        send = {"messaging.operation.name": "enqueue", "messaging.operation.type": "send"}
        process = {"messaging.operation.name": "run", "messaging.operation.type": "process"}
        assert dict(producer.attributes or {}) == common | send
        ours = {"tandem.attempt": 1, "tandem.outcome": "completed"}
        assert dict(consumer.attributes or {}) == common | process | ours
        assert dict(commit.attributes or {}) == {"db.system.name": "postgresql", "db.operation.name": "COMMIT"}
        assert dict(spans["transaction"].attributes or {}) == {"tandem.transaction": "committed"}

    async def test_each_attempt_is_a_span_with_its_error_and_a_transaction_that_is_rolled_back(
        self, start: StartWorker, spans: Spans
    ) -> None:
        """Retries and the final failure are in the same trace. Neither has a COMMIT."""
        async with start(fail_thrice, ledger=Ledger()) as one:
            await fail_thrice.enqueue()
            await one.idle()
        runs = sorted(spans.all("run fail_thrice"), key=lambda span: span.start_time or 0)
        first, last = runs[0], runs[-1]
        found = [dict(span.attributes or {}) for span in runs]
        assert [(each["tandem.attempt"], each["tandem.outcome"], each.get("error.type")) for each in found] == [
            (1, "retried", None),  # it has asked for another attempt, which is no error
            (2, "retried", "LookupError"),
            (3, "failed", "ValueError"),
        ]
        assert last.status.status_code is StatusCode.ERROR
        assert last.status.description == "ValueError: no stock"
        assert [event.name for event in last.events] == ["exception"]
        assert {trace_of(span) for span in spans.all()} == {trace_of(first)}
        transactions = [dict(span.attributes or {}) for span in spans.all("transaction")]
        assert transactions == [{"tandem.transaction": "rolled back"}] * 3
        assert spans.all("COMMIT") == []

    async def test_a_call_that_cannot_enqueue_is_a_failed_span(self, spans: Spans) -> None:
        """The error is the caller's as well."""
        with pytest.raises(ValueError, match="cannot name 2 jobs"):
            await idle.using(job_id="x").enqueue_many([{}, {}])
        with pytest.raises(RuntimeError), request_span():
            async with db.scope():
                await idle.using(job_id="x").enqueue()
                raise RuntimeError
        assert spans.names == ["GET /order", "enqueue idle"]

    async def test_a_job_without_a_transaction_has_no_span_of_one(self, start: StartWorker, spans: Spans) -> None:
        """An unused scope opens nothing."""
        async with start(idle, ledger=Ledger()) as one:
            await idle.enqueue()
            await one.idle()
        assert spans.names == ["enqueue idle", "run idle"]

    async def test_early_commits_are_children_of_the_same_transaction_span(
        self, start: StartWorker, spans: Spans
    ) -> None:
        """One span for each COMMIT."""

        @task
        async def commits_early(session: db.AsyncSession) -> None:
            await session.execute(text("INSERT INTO note (words) VALUES ('early')"))
            await db.commit()
            await session.execute(text("INSERT INTO note (words) VALUES ('late')"))

        async with start(commits_early, ledger=Ledger()) as one:
            await commits_early.enqueue()
            await one.idle()
        assert {parent_of(span) for span in spans.all("COMMIT")} == {id_of(spans["transaction"])}
        assert len(spans.all("COMMIT")) == 2

    async def test_a_commit_that_fails_is_a_failed_span(self, start: StartWorker, spans: Spans) -> None:
        """A deferred constraint is checked by the COMMIT."""

        @task
        async def breaks_a_constraint(session: db.AsyncSession) -> None:
            await session.execute(text("INSERT INTO reply VALUES (-1)"))

        async with start(breaks_a_constraint, ledger=Ledger()) as one:
            await breaks_a_constraint.enqueue()
            await one.idle()
        assert spans["COMMIT"].status.status_code is StatusCode.ERROR
        assert dict(spans["transaction"].attributes or {}) == {"tandem.transaction": "rolled back"}

    async def test_an_error_of_the_sampler_fails_neither_the_call_nor_the_job(
        self, start: StartWorker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The log has it."""

        class Broken(Sampler):
            def should_sample(self, *_arguments: Any, **_named: Any) -> Any:
                raise RuntimeError("broken sampler")

            def get_description(self) -> str:
                return "broken"

        use(monkeypatch, Broken())
        async with start(idle) as one:
            job = await idle.enqueue()
            await one.idle()
        info = await job.info()
        assert info is not None
        assert info.success


class TestUnused:
    def test_what_is_not_set_up_is_not_imported(self) -> None:
        """Neither OpenTelemetry nor Sentry, by a web process or by a worker, although they are installed."""
        script = (
            "import sys, worker, worker.settings, worker.process.standalone, worker.cli\n"
            "from worker.telemetry.tracing import active_tracing\n"
            "assert active_tracing() is None\n"
            "print([name for name in sys.modules if name.startswith(('opentelemetry', 'sentry_sdk'))])"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], env=bare_environment(), capture_output=True, text=True, check=True
        )
        assert done.stdout == "[]\n"

    async def test_an_api_without_a_provider_makes_no_spans(self, start: StartWorker) -> None:
        """A library may have imported it."""
        assert "opentelemetry.trace" in sys.modules
        assert active_tracing() is None
        async with start(idle) as one:
            job = await idle.enqueue()
            await one.idle()
        info = await job.info()
        assert info is not None
        assert info.traceparent is None
