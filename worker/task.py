"""``@task``: a function that can be enqueued.

1. Decorating registers nothing and does no I/O. The registry lists the tasks that a worker runs.
2. `enqueue` validates the arguments into a payload and makes a `NewJob`. Inside a scope the job exists if and only if
   the scope commits: see :mod:`worker.client.enqueue`. With ``using(session=...)`` the same holds for that session's
   transaction: see :mod:`worker.client.own_session`. Outside both, or with ``using(transactional=False)``, the job is
   queued at once.
3. Calling a task calls its function.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, partial, update_wrapper
from itertools import compress
from typing import TYPE_CHECKING, Any, Concatenate, Generic, NamedTuple, ParamSpec, Protocol, TypeVar, overload

from db import AsyncSession, Session
from db.errors import ScopeEndedError
from db.scope import Scope, open_scope
from worker.aio import loop_thread
from worker.broker.broker import Broker, default_broker
from worker.broker.records import now_ms
from worker.client.chunk import Chunk, ChunkSignature
from worker.client.enqueue import (
    EnclosingTransaction,
    Transaction,
    borrowed_session,
    enqueue_in,
    refuse_if_required,
)
from worker.client.enqueue_time import enqueue_time
from worker.client.enqueued import count_enqueued
from worker.client.options import JobOptions, TaskOptions, text
from worker.client.origin import current_origin
from worker.client.own_session import OwnSession, enqueue_in_session, enqueue_in_session_sync
from worker.client.schedule import Schedule
from worker.client.signature import InjectedSession, Signature
from worker.context import JobContext, from_milliseconds
from worker.errors import EnqueueError, PayloadTooLargeError, TaskDefinitionError
from worker.job import Job
from worker.job_ids import new_job_ids
from worker.message import Envelope
from worker.new_job import NewJob
from worker.telemetry.tracing import active_tracing

if TYPE_CHECKING:
    from opentelemetry.trace import Span

P = ParamSpec("P")
R = TypeVar("R")

_NO_OPTIONS = JobOptions()


class _New(NamedTuple):
    """The jobs of one call, and the broker that takes them."""

    jobs: list[NewJob]
    broker: Broker


class Task(Generic[P, R]):
    """A function that can be enqueued. `task` makes one.

    ::

        @task
        async def ship(session: AsyncSession, order_id: int) -> None: ...


        await ship.enqueue(order_id=7)
        await ship.using(delay=60, job_id="ship-7").enqueue(order_id=7)
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        name: str,
        options: TaskOptions,
        *,
        schedules: tuple[Schedule, ...] = (),
        is_arq: bool = False,
    ) -> None:
        update_wrapper(self, fn)
        self.fn = fn
        self.name = name
        self.options = options
        self.schedules = schedules
        """The schedules that workers run the task on. Tasks that arq's `cron()` made may have several."""
        self.is_arq = is_arq
        """Whether the function came by arq's list or `func()`. Its first parameter is then arq's context."""
        chunk = options.chunk
        self.signature = Signature(fn, is_arq=is_arq) if chunk is None else ChunkSignature(fn, chunk)

    @property
    def schedule(self) -> Schedule | None:
        """The first schedule. None if the task has none."""
        return self.schedules[0] if self.schedules else None

    @property
    def run_at_startup(self) -> bool:
        """Whether a worker also queues a job when it starts."""
        return any(schedule.run_at_startup for schedule in self.schedules)

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fn(*args, **kwargs)

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Enqueue a job. The arguments are the function's own, without the injected ones.

        Raises:
            TypeError, pydantic.ValidationError: the arguments do not fit the signature. Nothing is queued.
            EnqueueError: JSON would change an argument, or the arguments are too large. Nothing is queued.
        """
        return await BoundTask(self, _NO_OPTIONS).enqueue(*args, **kwargs)

    def enqueue_sync(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Enqueue a job from code without an event loop: a plain function, a thread, a synchronous view.

        Inside a scope, for example that of the request or job that started this thread, it is as transactional as
        `enqueue`. Raises as `enqueue` does, and besides:

        Raises:
            EnqueueError: an event loop runs in this thread, and the call would block it.
            ScopeEndedError: the scope has ended.
        """
        return BoundTask(self, _NO_OPTIONS).enqueue_sync(*args, **kwargs)

    async def enqueue_many(self, calls: Iterable[Mapping[str, Any]]) -> list[Job[R]]:
        """Enqueue many jobs, each with its arguments by name, in one round trip for each thousand."""
        return await BoundTask(self, _NO_OPTIONS).enqueue_many(calls)

    def enqueue_many_sync(self, calls: Iterable[Mapping[str, Any]]) -> list[Job[R]]:
        """Enqueue many jobs from code without an event loop, as `enqueue_many` does. Raises as `enqueue_sync`."""
        return BoundTask(self, _NO_OPTIONS).enqueue_many_sync(calls)

    def using(
        self,
        *,
        delay: float | timedelta = 0.0,
        at: datetime | None = None,
        job_id: str | None = None,
        queue: str | None = None,
        expires: float | timedelta | None = None,
        transactional: bool | None = None,
        session: OwnSession | None = None,
    ) -> "BoundTask[P, R]":
        """The task with options for the jobs that are enqueued through it.

        Args:
            delay: seconds until the job is due.
            at: the due time, instead of `delay`. It needs a time zone. A time in the past means now.
            job_id: an id of your own. While a job of this id waits or runs, or its result is kept, enqueueing it again
                adds nothing, and the job's `is_new` is False. An aborted job leaves its id free.
            queue: the job's queue, instead of the task's.
            expires: seconds past the due time after which the job is not started (default: a day; for a job that is
                enqueued in a transaction: never).
            transactional: False sends the job to Redis at once, even if the scope rolls back.
            session: a session or connection of SQLAlchemy that you opened yourself, or ``django.db.connection`` inside
                ``transaction.atomic()``. The job exists if and only if its transaction commits, whether a scope is open
                or not.

        Raises:
            TypeError: `session` is not a session or connection of SQLAlchemy, nor a connection of Django.
            ValueError: both `delay` and `at` are given, the delay is negative, the time has no zone, the id or the
                queue is empty, or `transactional` is False in a session.
        """
        options = JobOptions.checked(
            delay=delay,
            at=at,
            job_id=job_id,
            queue=queue,
            expires=expires,
            transactional=transactional,
            session=session,
        )
        return BoundTask(self, options)

    @property
    def module(self) -> str:
        return self.signature.function.__module__

    @cached_property
    def file(self) -> str:
        return inspect.getsourcefile(inspect.unwrap(self.signature.function)) or "?"

    @cached_property
    def line(self) -> int:
        return int(inspect.unwrap(self.signature.function).__code__.co_firstlineno)

    @property
    def signature_text(self) -> str:
        return self.signature.text

    @property
    def injected(self) -> Mapping[str, Any]:
        return self.signature.injected

    @cached_property
    def is_sync(self) -> bool:
        """Whether the function is a plain one, which is called in a thread.

        A plain wrapper of an async function counts as plain, as it may call that function with `asyncio.run`.
        """
        return not any(map(inspect.iscoroutinefunction, (self.fn, self.signature.function)))

    def check(self) -> None:
        """Raise :class:`TaskDefinitionError` if a worker cannot run the function."""
        self.signature.check()
        problems = (_generator(self.fn), self._missing_defaults(), *map(self._wrong_session, self.injected))
        problem = next(filter(None, problems), None)
        if problem:
            raise TaskDefinitionError(
                f"{self.module}.{self.signature.function.__qualname__} cannot be a task: {problem}"
            )

    def _missing_defaults(self) -> str | None:
        if not self.schedules:
            return None
        missing = [name for name, parameter in self.signature.payload.items() if parameter.default is parameter.empty]
        if not missing:
            return None
        return f"scheduled tasks are called without arguments: give {', '.join(missing)} a default"

    def _wrong_session(self, name: str) -> str | None:
        match self.injected[name]:
            case InjectedSession(sync=True) if not self.is_sync:
                return f"{name} is a Session in an async function: annotate it AsyncSession"
            case InjectedSession(sync=False) if self.is_sync and not inspect.iscoroutinefunction(
                inspect.unwrap(self.fn)
            ):
                return f"{name} is an AsyncSession in a plain function: annotate it Session"
        return None


@dataclass(frozen=True)
class BoundTask(Generic[P, R]):
    """A task with options for the jobs that are enqueued through it. `Task.using` makes one."""

    task: Task[P, R]
    options: JobOptions

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """As `Task.enqueue`."""
        payloads = [self.task.signature.validate(args, kwargs)]
        (job,) = await (self._submit(payloads) if active_tracing() is None else self._submit_in_span(payloads))
        return job

    def enqueue_sync(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """As `Task.enqueue_sync`. With `using(session=...)` it may be called where an event loop runs."""
        (job,) = self._enqueue_sync([self.task.signature.validate(args, kwargs)])
        return job

    def enqueue_many_sync(self, calls: Iterable[Mapping[str, Any]]) -> list[Job[R]]:
        """As `Task.enqueue_many_sync`. With `using(session=...)` it may be called where an event loop runs.

        Raises:
            ValueError: `using(job_id=...)` with more than one call.
        """
        return self._enqueue_sync(self._payloads(calls))

    def _enqueue_sync(self, payloads: list[bytes]) -> list[Job[R]]:
        if active_tracing() is None:
            return self._submit_sync(payloads)
        with _producer_span(self.task) as span:
            jobs = self._submit_sync(payloads)
            _describe(span, jobs)
        return jobs

    def _submit_sync(self, payloads: list[bytes]) -> list[Job[R]]:
        if self.options.session is not None:
            new = self._new_jobs(payloads, in_transaction=True)
            return self._handles(new, *enqueue_in_session_sync(self.options.session, *new, is_named=self._is_named))
        _refuse_on_loop(self.task.name)
        scope = self._scope
        submitted = self._submit_here(payloads, scope)
        return loop_thread.run(submitted) if scope is None else loop_thread.run_on(scope.loop, submitted)

    async def enqueue_many(self, calls: Iterable[Mapping[str, Any]]) -> list[Job[R]]:
        """As `Task.enqueue_many`.

        Raises:
            ValueError: `using(job_id=...)` with more than one call.
        """
        payloads = self._payloads(calls)
        return await (self._submit(payloads) if active_tracing() is None else self._submit_in_span(payloads))

    def _payloads(self, calls: Iterable[Mapping[str, Any]]) -> list[bytes]:
        payloads = [self.task.signature.validate((), call) for call in calls]
        if self.options.job_id is not None and len(payloads) > 1:
            raise ValueError(f"one job_id ({self.options.job_id}) cannot name {len(payloads)} jobs")
        return payloads

    async def _submit_in_span(self, payloads: list[bytes]) -> list[Job[R]]:
        with _producer_span(self.task) as span:
            jobs = await self._submit(payloads)
            _describe(span, jobs)
        return jobs

    async def _submit(self, payloads: list[bytes]) -> list[Job[R]]:
        if self.options.session is not None:
            new = self._new_jobs(payloads, in_transaction=True)
            return self._handles(new, *await enqueue_in_session(self.options.session, *new, is_named=self._is_named))
        scope = self._scope
        if scope is None or scope.loop is asyncio.get_running_loop():
            return await self._submit_here(payloads, scope)
        # This thread has its own loop, but only the scope's loop can use the scope's sessions.
        return await asyncio.to_thread(loop_thread.run_on, scope.loop, self._submit_here(payloads, scope))

    async def _submit_here(self, payloads: list[bytes], scope: Scope | None) -> list[Job[R]]:
        """Enqueue the jobs. It must run on the scope's loop."""
        if scope is not None and not scope.is_open:
            raise ScopeEndedError
        new = self._new_jobs(payloads, in_transaction=scope is not None)
        if scope is not None and (borrowed := borrowed_session(scope)) is not None:
            return self._handles(new, *await enqueue_in_session(borrowed, *new, is_named=self._is_named))
        transaction = None if scope is None else Transaction(scope)
        if transaction is None:
            are_new = await new.broker.enqueue(new.jobs)
            count_enqueued(new.jobs if all(are_new) else [*compress(new.jobs, are_new)])
        else:
            are_new = await enqueue_in(transaction, *new, is_named=self._is_named)
        return self._handles(new, transaction, are_new)

    def _handles(self, new: _New, transaction: EnclosingTransaction | None, are_new: list[bool]) -> list[Job[R]]:
        if not new.jobs:
            return []
        queue, enqueued_at = new.jobs[0].queue, from_milliseconds(new.jobs[0].enqueued_at)
        # The enqueue time of an earlier job with the same id is not known here.
        earlier: partial[Job[R]] = partial(Job, queue_name=queue, broker=new.broker, signature=self.task.signature)
        added = partial(earlier, enqueued_at=enqueued_at, is_new=True, transaction=transaction)
        return [added(job.id) if is_new else earlier(job.id) for job, is_new in zip(new.jobs, are_new, strict=True)]

    @property
    def _scope(self) -> Scope | None:
        """The scope whose transaction the jobs are part of; None if there is none.

        Raises:
            EnqueueError: there is none, and ``WORKER_REQUIRE_SCOPE`` requires one.
        """
        if not self._transactional:
            return None
        scope = open_scope()
        if scope is None:
            refuse_if_required(self.task.name)
        return scope

    @property
    def _is_named(self) -> bool:
        return self.options.job_id is not None

    @property
    def _transactional(self) -> bool:
        chosen = self.options.transactional
        return self.task.options.transactional if chosen is None else chosen

    def _ids(self, count: int) -> list[str]:
        if self.options.job_id is not None:
            return [self.options.job_id] * count
        return new_job_ids(count)

    def _check_size(self, payloads: list[bytes], broker: Broker) -> None:
        largest = max(map(len, payloads), default=0)
        if largest > broker.max_payload:
            raise PayloadTooLargeError(
                f"{self.task.name}: the arguments have {largest} bytes, and WORKER_MAX_PAYLOAD allows "
                f"{broker.max_payload}: store them, and enqueue their key"
            )

    def _new_jobs(self, payloads: list[bytes], *, in_transaction: bool) -> _New:
        broker = default_broker()
        self._check_size(payloads, broker)
        task, options = self.task.name, self.options
        enqueued_at = now_ms() if options.job_id is None else enqueue_time(options.job_id)
        queue = options.queue or self.task.options.queue or broker.name
        due, delay, expires = options.due, options.delay, options.expiry(in_transaction=in_transaction)
        parent, traceparent = current_origin()
        envelope = Envelope(task, enqueued_at, in_ledger=in_transaction, parent=parent, traceparent=traceparent)
        jobs = [
            NewJob(job_id, envelope.around(payload), task, queue, enqueued_at, due, delay, expires, parent, traceparent)
            for job_id, payload in zip(self._ids(len(payloads)), payloads, strict=True)
        ]
        return _New(jobs, broker)


# The caller passes no injected parameter. The overloads drop a leading session, a leading context, or both from the
# signature that type checkers see for `enqueue`. Other injected parameters have the default `worker.injected`.
class _Decorator:
    """The decorator that `task(...)` returns."""

    def __init__(self, name: str | None, options: TaskOptions) -> None:
        self._name = name
        self._options = options

    @overload
    def __call__(self, fn: Callable[Concatenate[AsyncSession, JobContext, P], Awaitable[R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[JobContext, AsyncSession, P], Awaitable[R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[AsyncSession, P], Awaitable[R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[JobContext, P], Awaitable[R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, Awaitable[R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[Session, JobContext, P], R], /) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[JobContext, Session, P], R], /) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[Session, P], R], /) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[JobContext, P], R], /) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Task[P, R]: ...
    def __call__(self, fn: Callable[..., Any], /) -> Task[Any, Any]:
        if isinstance(fn, Task):
            raise TaskDefinitionError(f"{fn.name} is a task already: decorate it once")
        if not inspect.isfunction(inspect.unwrap(fn)):
            raise TaskDefinitionError(f"@task takes a function, not {fn!r}")
        return Task(fn, self._name or fn.__qualname__, self._options)


class _ChunkDecorator(Protocol):
    """The decorator that `task(chunk=...)` returns. The parameters of `enqueue` are the fields of the calls' class."""

    @overload
    def __call__(self, fn: Callable[..., Awaitable[list[R]]], /) -> Task[..., R]: ...
    @overload
    def __call__(self, fn: Callable[..., Awaitable[None]], /) -> Task[..., None]: ...
    @overload
    def __call__(self, fn: Callable[..., Awaitable[list[R] | None]], /) -> Task[..., R | None]: ...


@overload
def task(fn: Callable[Concatenate[AsyncSession, JobContext, P], Awaitable[R]], /) -> Task[P, R]: ...
@overload
def task(fn: Callable[Concatenate[JobContext, AsyncSession, P], Awaitable[R]], /) -> Task[P, R]: ...
@overload
def task(fn: Callable[Concatenate[AsyncSession, P], Awaitable[R]], /) -> Task[P, R]: ...
@overload
def task(fn: Callable[Concatenate[JobContext, P], Awaitable[R]], /) -> Task[P, R]: ...
@overload
def task(fn: Callable[P, Awaitable[R]], /) -> Task[P, R]: ...
@overload
def task(fn: Callable[Concatenate[Session, JobContext, P], R], /) -> Task[P, R]: ...
@overload
def task(fn: Callable[Concatenate[JobContext, Session, P], R], /) -> Task[P, R]: ...
@overload
def task(fn: Callable[Concatenate[Session, P], R], /) -> Task[P, R]: ...
@overload
def task(fn: Callable[Concatenate[JobContext, P], R], /) -> Task[P, R]: ...
@overload
def task(fn: Callable[P, R], /) -> Task[P, R]: ...
@overload
def task(
    *,
    name: str | None = None,
    queue: str | None = None,
    timeout: float | timedelta | None = None,
    max_tries: int | None = None,
    retry_on: tuple[type[Exception], ...] = (),
    keep_result: float | timedelta | None = None,
    transactional: bool = True,
    once: bool = True,
) -> _Decorator: ...
@overload
def task(
    *,
    chunk: Chunk,
    name: str | None = None,
    queue: str | None = None,
    timeout: float | timedelta | None = None,
    max_tries: int | None = None,
    retry_on: tuple[type[Exception], ...] = (),
    keep_result: float | timedelta | None = None,
    transactional: bool = True,
    once: bool = True,
) -> _ChunkDecorator: ...
def task(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    queue: str | None = None,
    timeout: float | timedelta | None = None,
    max_tries: int | None = None,
    retry_on: tuple[type[Exception], ...] = (),
    keep_result: float | timedelta | None = None,
    transactional: bool = True,
    once: bool = True,
    chunk: Chunk | None = None,
) -> Any:
    """Make a function a task: ``@task``, or ``@task(timeout=30)``.

    ::

        @task(timeout=30, max_tries=5, retry_on=(httpx.HTTPError,), queue="mail")
        async def send_receipt(session: AsyncSession, order_id: int) -> None: ...

    An `async def` runs on the worker's event loop, a plain function in a thread. If a plain function returns an
    awaitable, the loop awaits it. For injected parameters see :mod:`worker.client.signature`.

    Args:
        name: the task's name on the wire (default: the function's ``__qualname__``, as in arq).
        queue, timeout, max_tries, retry_on, keep_result, transactional, once: see :class:`TaskOptions`.
        chunk: see :class:`Chunk`. The function takes its calls as one list, and `enqueue` the arguments of one call.

    Raises:
        TaskDefinitionError: the decorated object is not a function, or a number is out of range.
    """
    try:
        options = TaskOptions.checked(
            queue=queue,
            timeout=timeout,
            max_tries=max_tries,
            retry_on=retry_on,
            keep_result=keep_result,
            transactional=transactional,
            once=once,
            chunk=chunk,
        )
        name = text(name, "name")
    except (TypeError, ValueError) as error:
        raise TaskDefinitionError(f"@task: {error}") from None
    decorator = _Decorator(name, options)
    return decorator if fn is None else decorator(fn)


def _producer_span(task: Task[..., Any]) -> AbstractContextManager["Span"]:
    tracing = active_tracing()
    assert tracing is not None  # noqa: S101 - the caller has asked
    return tracing.producer(task.name)


def _describe(span: "Span", jobs: list[Job[Any]]) -> None:
    """Set the attributes of a span that are known once its jobs are enqueued."""
    if jobs:
        span.set_attribute("messaging.destination.name", jobs[0].queue_name)
    if len(jobs) == 1:
        span.set_attribute("messaging.message.id", jobs[0].job_id)
    else:
        span.set_attribute("messaging.batch.message_count", len(jobs))


def _refuse_on_loop(name: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise EnqueueError(f"enqueue_sync would block the running event loop: write 'await {name}.enqueue(...)'")


def _generator(fn: Callable[..., Any]) -> str | None:
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        return "it is a generator, and a job has one result: return a list instead"
    return None
