"""``Chunks``: handle many jobs of a task in one call, one session, one transaction.

1. The first job of a chunk waits for others, until the chunk is full or its wait is over. The first job keeps its slot;
   the others give theirs back, so that the claimer brings more jobs.
2. A chunk that fails, in whatever way, is rolled back. Its jobs then run one after the other, each as it would without
   chunks. So a bad one fails alone, and a job that another attempt has completed is dropped.
3. A job that was started before runs alone at once: it may be the bad one. So does a job that came as a pickle, and
   each job if a worker has one slot or arq's hooks.
4. A job that is aborted or interrupted leaves its chunk. If the chunk runs, it is rolled back for that.

Each job keeps what it has without chunks: its asyncio task, lease, outcome, result and ledger row.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import Context

from db.scope import scope
from worker.client.chunk import Chunk, ChunkSignature
from worker.engine.execution import Execution
from worker.engine.once import Once
from worker.engine.outcome import Outcome
from worker.engine.slots import Slots
from worker.engine.task_caller import TaskCaller

logger = logging.getLogger("worker")

_NO_OUTCOMES: Mapping[Execution, Outcome] = {}


class Chunks:
    """The chunks of one worker.

    Args:
        slots: the worker's slots. The jobs of a chunk share one.
        caller: calls the functions of the tasks.
        once: keeps effects from happening twice.
        serialize: encodes the result of one job. Raises if it is no JSON, or too large.
    """

    def __init__(self, slots: Slots, caller: TaskCaller, once: Once, serialize: Callable[[object], bytes]) -> None:
        self._slots = slots
        self._caller = caller
        self._once = once
        self._serialize = serialize
        self._gathering: dict[tuple[str, bytes], _Gathered] = {}

    async def execute(self, execution: Execution, alone: Callable[[bool], Awaitable[Outcome]]) -> Outcome:
        """Execute a job together with others.

        Args:
            alone: executes the job by itself. The argument says whether to look first if it was completed before.
        """
        options, signature = execution.task.options.chunk, execution.task.signature
        assert options is not None  # noqa: S101 - the caller has asked
        assert isinstance(signature, ChunkSignature)  # noqa: S101 - a task with a chunk has one
        if self._is_alone(execution):
            return await alone(False)
        try:
            key = signature.key(execution.arguments)
        except Exception:  # noqa: BLE001 - the class of the calls refuses the arguments: alone, the job fails with that
            return await alone(False)
        chunk = self._join(execution, (execution.task.name, key), options)
        try:
            outcome = await chunk.outcome_of(execution)
            if outcome is not None:
                return outcome
            async with chunk.turn_of(execution):
                return await alone(chunk.has_begun)
        finally:
            chunk.leave(execution)

    def _is_alone(self, execution: Execution) -> bool:
        """Whether a job never goes into a chunk. With one slot, no other job could come to it."""
        was_started = execution.claim.tries or execution.claim.crashes
        return bool(was_started) or execution.message.is_pickled or self._caller.has_hooks or self._slots.total == 1

    def hurry(self) -> None:
        """Start every chunk that waits for more jobs: none will come."""
        for chunk in self._gathering.values():
            chunk.has_enough.set()

    def _join(self, execution: Execution, key: tuple[str, bytes], options: Chunk) -> "_Gathered":
        execution.keep_lease()
        chunk = self._gathering.get(key)
        if chunk is None:
            chunk = self._gathering[key] = _Gathered(options)
            chunk.task = asyncio.get_running_loop().create_task(self._gather_and_run(chunk, key), context=Context())
        else:
            execution.holds_slot = False
            self._slots.give_back(execution.claim)
        chunk.add(execution)
        if chunk.has_enough.is_set():
            del self._gathering[key]
        return chunk

    async def _gather_and_run(self, chunk: "_Gathered", key: tuple[str, bytes]) -> Mapping[Execution, Outcome]:
        try:
            async with asyncio.timeout(chunk.options.wait):
                await chunk.has_enough.wait()
        except TimeoutError:
            pass
        finally:
            if self._gathering.get(key) is chunk:
                del self._gathering[key]
        if len(chunk.executions) < 2:
            return _NO_OUTCOMES
        return await self._run(chunk)

    async def _run(self, chunk: "_Gathered") -> Mapping[Execution, Outcome]:
        """Call the function for all jobs and commit. Return the outcome of each; none if the chunk was rolled back."""
        executions = list(chunk.executions)
        chunk.keep_leases()
        for execution in executions:
            execution.has_run = True
        task, limits = executions[0].task, executions[0].limits
        chunk.has_begun = True
        try:
            async with scope() as work:
                async with asyncio.timeout(limits.timeout):
                    values = await self._caller.call_chunk(
                        task, [each.arguments for each in executions], work, executions[0].context.resources
                    )
                results = {each: self._serialize(value) for each, value in zip(executions, values, strict=True)}
                in_ledger = await self._once.complete_all(work, results)
        except (Exception, asyncio.CancelledError, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 - each job is run alone, which judges its error
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            logger.info("%s: a chunk of %d jobs is run one by one: %s", task.name, len(executions), reason)
            return _NO_OUTCOMES
        return {each: Outcome.completed(result, in_ledger=in_ledger) for each, result in results.items()}


class _Gathered:
    """One chunk."""

    task: "asyncio.Task[Mapping[Execution, Outcome]]"

    def __init__(self, options: Chunk) -> None:
        self.options = options
        self.executions: dict[Execution, None] = {}
        """Those that have not ended, in the order in which they came."""
        self.has_enough = asyncio.Event()
        """Set when it is full, or when no more jobs will come."""
        self.has_begun = False
        """Whether its function was called. A job that runs alone after that may have been committed."""
        self._is_cancelled = False
        self._one_at_a_time = asyncio.Lock()
        self._running: Execution | None = None

    def add(self, execution: Execution) -> None:
        self.executions[execution] = None
        if len(self.executions) >= self.options.size:
            self.has_enough.set()

    async def outcome_of(self, execution: Execution) -> Outcome | None:
        """Wait for the chunk. The outcome of the job; None if it is to run alone."""
        try:
            return (await asyncio.shield(self.task)).get(execution)
        except asyncio.CancelledError:
            if self.has_begun and not self.task.done():
                self._cancel()
                await asyncio.wait({self.task})
            if self.task.done() and (outcome := self.task.result().get(execution)) is not None:
                return outcome  # the COMMIT was first
            raise

    @asynccontextmanager
    async def turn_of(self, execution: Execution) -> AsyncIterator[None]:
        """Wait until no other job of the chunk runs. The slot goes to the job whose turn it is."""
        while True:
            try:
                async with asyncio.timeout(execution.limits.timeout):
                    await self._one_at_a_time.acquire()
                break
            except TimeoutError:
                if self._running is not None and not self._running.is_overdue:  # else it may never end
                    execution.keep_lease()
        try:
            self._running = execution
            for each in self.executions:
                each.holds_slot = each is execution
            yield
        finally:
            self._one_at_a_time.release()

    def keep_leases(self) -> None:
        """Keep the leases of all jobs for as long as one attempt may take, from now on."""
        for execution in self.executions:
            execution.keep_lease()

    def leave(self, execution: Execution) -> None:
        """A job has ended. The last one has the slot."""
        del self.executions[execution]
        if execution.holds_slot and self.executions:
            execution.holds_slot = False
            next(iter(self.executions)).holds_slot = True

    def _cancel(self) -> None:
        """Cancel the function, once: a second cancellation would interrupt the rollback."""
        if not self._is_cancelled:
            self._is_cancelled = True
            self.task.cancel()
