"""Call a task's function with its arguments, sessions, context and resources, on the event loop or in a thread."""

import asyncio
import contextvars
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from db import default_database
from db.scope import Scope
from db.session.classes import Session
from worker.client.chunk import ChunkSignature
from worker.client.signature import Injected, InjectedArqContext, InjectedContext, InjectedSession
from worker.context import JobContext, Resource
from worker.engine.arq_time import in_arqs_zone
from worker.engine.execution import Execution
from worker.task import Task

logger = logging.getLogger("worker")

Hook = Callable[[dict[Any, Any]], Awaitable[None]]


class TaskCaller:
    """Calls tasks.

    Args:
        threads: the number of plain functions that may run at once.
        arq_context: items of ``ctx`` besides the job, the resources and the session.
        on_job_start, on_job_end: arq's hooks. They run inside the job's scope, and an error of a hook fails its job.
    """

    def __init__(
        self,
        *,
        threads: int,
        arq_context: Mapping[Any, Any] | None = None,
        on_job_start: Hook | None = None,
        on_job_end: Hook | None = None,
    ) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="task")
        self._arq_context = arq_context or {}
        self._own_items = own_items(self._arq_context)
        self._on_job_start = on_job_start
        self._on_job_end = on_job_end
        self.has_hooks = on_job_start is not None or on_job_end is not None
        """Whether each call of a task is to be between `begin` and `end`, or `end_failed`."""

    def close(self) -> None:
        """Start no more plain functions."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def begin(self, execution: Execution, scope: Scope) -> None:
        """Call ``on_job_start``."""
        execution.arq_context = await self._context(execution.context, scope)
        if self._on_job_start is not None:
            await self._on_job_start(execution.arq_context)

    async def end(self, execution: Execution) -> None:
        """Call ``on_job_end``."""
        if self._on_job_end is not None and execution.arq_context is not None:
            await self._on_job_end(execution.arq_context)

    async def end_failed(self, execution: Execution) -> None:
        """Call ``on_job_end`` of a job that has failed. The hook's own error must not hide the job's error."""
        try:
            await self.end(execution)
        except (Exception, SystemExit, KeyboardInterrupt):
            logger.exception("on_job_end failed after a job that had failed")

    async def call(self, execution: Execution, scope: Scope) -> Any:
        """Call the task in `scope`."""
        task, values = execution.task, {}
        for name, injected in task.injected.items():
            values[name] = await self._inject(injected, execution, scope)
        if task.is_sync:
            return await self._in_thread(task, execution.arguments, values)
        return await task.signature.call(execution.arguments, values)

    async def call_chunk(
        self, task: Task[..., Any], calls: Sequence[Mapping[str, Any]], scope: Scope, resources: Mapping[str, Any]
    ) -> Sequence[Any]:
        """Call a chunked task with the arguments of many jobs, and return the result of each."""
        assert isinstance(task.signature, ChunkSignature)  # noqa: S101 - a chunked task has one
        values = {
            name: await _session(each, scope) if isinstance(each, InjectedSession) else resources[each.name]
            for name, each in task.injected.items()
            if isinstance(each, InjectedSession | Resource)
        }
        return await task.signature.call_chunk(calls, values)

    async def _inject(self, injected: Injected, execution: Execution, scope: Scope) -> Any:
        match injected:
            case InjectedSession():
                return await _session(injected, scope)
            case InjectedContext():
                return execution.context
            case InjectedArqContext():
                if not self.has_hooks:  # else it is the one that the hooks get
                    execution.arq_context = await self._context(execution.context, scope)
                return execution.arq_context
            case Resource(name):
                return execution.context.resources[name]

    async def _context(self, job: JobContext, scope: Scope) -> dict[Any, Any]:
        """Build arq's ``ctx``."""
        session = await scope.session(default_database())
        return {
            **self._arq_context,
            **job.resources,
            ("db_session" if "session" in self._own_items else "session"): session,
            **self._own_items,
            "job_id": job.job_id,
            "job_try": job.attempt,
            "enqueue_time": in_arqs_zone(job.enqueued_at),
            "score": job.score,
        }

    async def _in_thread(self, task: Task[..., Any], payload: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
        """Call a plain function in a thread. An awaitable that it returns is awaited here, in the context of the call.

        A thread cannot be cancelled. On a cancellation, the thread's next statement raises, and the scope waits until
        the thread has ended.
        """
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context()
        call = loop.run_in_executor(self._threads, context.run, _call_plainly, task, payload, values)
        try:
            result = await asyncio.shield(call)
        except asyncio.CancelledError:
            for value in values.values():
                if isinstance(value, Session):
                    value.access.stop(TimeoutError(f"{task.name} was stopped"))
            await _wait_for_thread(call)
            raise
        return await loop.create_task(_awaited(result), context=context) if inspect.isawaitable(result) else result


async def _session(injected: InjectedSession, scope: Scope) -> Any:
    chosen = injected.database or default_database()
    return await scope.session(chosen.sync if injected.sync else chosen)


def own_items(arq_context: Mapping[Any, Any]) -> dict[Any, Any]:
    """The items of ``ctx`` that the project has put there. Tasks find them, whatever else has the same names."""
    return {name: value for name, value in arq_context.items() if name != "redis"}


def _call_plainly(task: Task[..., Any], payload: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
    try:
        return task.signature.call(payload, values)
    except StopIteration as error:
        # A future cannot hold a StopIteration and would never be done. In a coroutine, Python makes it a RuntimeError.
        raise RuntimeError(f"{task.name} raised StopIteration") from error


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result


async def _wait_for_thread(call: asyncio.Future[Any]) -> None:
    """Wait until a thread has ended, ignoring cancellations."""
    while not call.done():
        try:
            await asyncio.wait({call})
        except asyncio.CancelledError:
            continue
    if call.exception() is None and inspect.iscoroutine(call.result()):
        call.result().close()  # too late to be awaited
