"""``TracedExecutor``: an executor with a span for each attempt, its transaction and its COMMIT."""

import time
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from db.scope import Scope, scope
from worker.engine.execution import Execution
from worker.engine.executor import Executor
from worker.engine.outcome import Outcome, OutcomeKind
from worker.errors import TriesExhaustedError
from worker.telemetry.tracing import Tracing, active_tracing

if TYPE_CHECKING:
    from opentelemetry.trace import Span


class TracedExecutor(Executor):
    """Executes admitted jobs, each attempt in a CONSUMER span.

    Args:
        tracing: the spans of this process.
        arguments: those of `Executor`.
    """

    def __init__(self, tracing: Tracing, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._tracing = tracing
        self._open_scope = partial(_TracedScope, tracing)

    def enter(self, execution: Execution) -> None:
        super().enter(execution)
        self._tracing.begin_attempt(execution.context)

    async def execute(self, execution: Execution) -> Outcome:
        span = self._tracing.current_span()
        try:
            outcome = await super().execute(execution)
        except BaseException as error:
            self._tracing.end_attempt(span, "error", error)
            raise
        self._tracing.end_attempt(span, outcome.kind.value, _failure(outcome))
        return outcome


def _failure(outcome: Outcome) -> BaseException | None:
    """The error that failed an attempt; None if none did. A task that asks for another attempt has not failed."""
    match outcome.kind:
        case OutcomeKind.FAILED:
            return outcome.error
        case OutcomeKind.RETRIED if not isinstance(outcome.error, TriesExhaustedError):
            return outcome.error
        case _:
            return None


class _TracedScope(scope):
    """A scope whose transaction is a span, with a child for each COMMIT. A scope that begins none has no span."""

    def __init__(self, tracing: Tracing) -> None:
        super().__init__()
        self._tracing = tracing
        self._work: Scope | None = None
        self._began = self._commit_began = 0
        self._system = ""
        self._transaction: Span | None = None

    async def __aenter__(self) -> Scope:
        self._began = time.time_ns()
        self._work = await super().__aenter__()
        self._work.call_at_each_commit(self._before_commit, self._committed)
        return self._work

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._work is not None  # noqa: S101 - entered
        if self._work.has_touched:
            self._span()
        self._commit_began = time.time_ns() if error is None else 0
        try:
            await super().__aexit__(kind, error, traceback)
        except BaseException as failure:
            error = failure
            if self._transaction is not None and self._commit_began:
                self._tracing.commit(self._transaction, self._system, self._commit_began, failure)
            raise
        finally:
            if self._transaction is not None:
                self._transaction.set_attribute("tandem.transaction", "committed" if error is None else "rolled back")
                self._transaction.end()

    async def _before_commit(self, session: Any) -> None:
        self._system = session.get_bind().dialect.name
        self._span()
        self._commit_began = time.time_ns()

    def _committed(self) -> None:
        self._tracing.commit(self._span(), self._system, self._commit_began)
        self._commit_began = 0

    def _span(self) -> "Span":
        if self._transaction is None:
            self._transaction = self._tracing.start_transaction(self._began)
        return self._transaction


def make_executor(*arguments: Any, **named: Any) -> Executor:
    """An executor for this process: with spans if the process has set up OpenTelemetry."""
    tracing = active_tracing()
    return Executor(*arguments, **named) if tracing is None else TracedExecutor(tracing, *arguments, **named)
