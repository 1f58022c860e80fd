"""``Tracing``: the spans of jobs, with OpenTelemetry.

1. A process has traces once it has set up a tracer provider, as OpenTelemetry's SDK or `opentelemetry-instrument` does.
   Before that, and where OpenTelemetry is not installed, nothing is imported and `active_tracing` is None.
2. A PRODUCER span covers a call that enqueues. Its `traceparent` travels with the job.
3. A CONSUMER span covers an attempt of a job. It is in the trace of the producer, and links to the producer's span.
4. Attributes are named by OpenTelemetry's conventions for messaging and databases. The spans are named by task, because
   one queue has many tasks.
5. An error of a sampler or exporter fails neither a job nor a call that enqueues.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanContext, TracerProvider

    from worker.context import JobContext

logger = logging.getLogger("worker")

_API = "opentelemetry.trace"
_SYSTEM = {"messaging.system": "tandem"}


class Tracing:
    """The spans of one tracer provider."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry import context, trace  # noqa: PLC0415 - optional

        self.provider = provider
        self._context = context
        self._trace = trace
        self._tracer = provider.get_tracer("tandem", version("tandem-jobs"))

    def current_span(self) -> "Span":
        return self._trace.get_current_span()

    def traceparent(self) -> str | None:
        """The current trace and span as W3C Trace Context writes them. None outside of a trace."""
        context = self._trace.get_current_span().get_span_context()
        if not context.is_valid:
            return None
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def trace_id(self) -> str | None:
        """The id of the current trace. None outside of a trace."""
        context = self._trace.get_current_span().get_span_context()
        return f"{context.trace_id:032x}" if context.is_valid else None

    @contextmanager
    def producer(self, task: str) -> Iterator["Span"]:
        """The span of a call that enqueues jobs of `task`."""
        attributes = {**_SYSTEM, "messaging.operation.name": "enqueue", "messaging.operation.type": "send"}
        span = self._start(f"enqueue {task}", "PRODUCER", {**attributes, "tandem.task": task})
        token = self._context.attach(self._trace.set_span_in_context(span))
        try:
            yield span
        except BaseException as error:
            self._fail(span, error)
            raise
        finally:
            self._context.detach(token)
            span.end()

    def begin_attempt(self, job: "JobContext") -> None:
        """Start the span of an attempt, and make it the current span of this asyncio task."""
        link = self._span_context(job.traceparent)
        attributes = {
            **_SYSTEM,
            "messaging.operation.name": "run",
            "messaging.operation.type": "process",
            "messaging.destination.name": job.queue,
            "messaging.message.id": job.job_id,
            "tandem.task": job.task,
            "tandem.attempt": job.attempt,
        }
        if job.parent is not None:
            attributes["tandem.parent"] = job.parent
        # An empty context, as the asyncio task may have inherited that of the code that started the worker.
        parent = self._context.Context()
        if link is not None:
            parent = self._trace.set_span_in_context(self._trace.NonRecordingSpan(link), parent)
        span = self._start(f"run {job.task}", "CONSUMER", attributes, context=parent, link=link)
        # Not detached: the context ends with the asyncio task, and later log lines of the job need its trace.
        self._context.attach(self._trace.set_span_in_context(span))

    def end_attempt(self, span: "Span", outcome: str, error: BaseException | None) -> None:
        """End the span of an attempt. `error` is what has failed it."""
        span.set_attribute("tandem.outcome", outcome)
        if error is not None:
            self._fail(span, error)
        span.end()

    def start_transaction(self, began: int) -> "Span":
        """Start the span of a transaction.

        Args:
            began: when it began, in nanoseconds since the epoch.
        """
        return self._start("transaction", "INTERNAL", {}, start=began)

    def commit(self, transaction: "Span", system: str, began: int, error: BaseException | None = None) -> None:
        """Record a COMMIT that has just been answered, as a child of its transaction.

        Args:
            system: the name of the database's dialect.
            began: as in `start_transaction`.
            error: the error with which the COMMIT failed.
        """
        attributes = {"db.system.name": system, "db.operation.name": "COMMIT"}
        context = self._trace.set_span_in_context(transaction)
        span = self._start("COMMIT", "CLIENT", attributes, context=context, start=began)
        if error is not None:
            self._fail(span, error)
        span.end()

    def _start(
        self,
        name: str,
        kind: str,
        attributes: dict[str, Any],
        *,
        context: Any = None,
        link: "SpanContext | None" = None,
        start: int | None = None,
    ) -> "Span":
        links = [] if link is None else [self._trace.Link(link)]
        try:
            return self._tracer.start_span(
                name,
                context=context,
                kind=self._trace.SpanKind[kind],
                attributes=attributes,
                links=links,
                start_time=start,
            )
        except Exception:
            logger.exception("the span %s cannot be started", name)
            return self._trace.INVALID_SPAN

    def _fail(self, span: "Span", error: BaseException) -> None:
        kind = type(error)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        span.set_attribute("error.type", name)
        span.record_exception(error)
        span.set_status(self._trace.StatusCode.ERROR, f"{kind.__name__}: {error}")

    def _span_context(self, traceparent: str | None) -> "SpanContext | None":
        if traceparent is None:
            return None
        _, trace_id, span_id, flags = traceparent.split("-")
        context = self._trace.SpanContext(
            int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=self._trace.TraceFlags(int(flags, 16))
        )
        return context if context.is_valid else None


_active: Tracing | None = None


def active_tracing() -> Tracing | None:
    """The spans of this process; None if it has set up no tracer provider."""
    trace: Any = sys.modules.get(_API)
    return None if trace is None else _of_provider(trace)


def _of_provider(trace: Any) -> Tracing | None:
    global _active  # noqa: PLW0603 - a process has one provider
    provider = trace.get_tracer_provider()
    if _active is None or _active.provider is not provider:
        if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
            return None
        _active = Tracing(provider)
    return _active
