"""``JobRunner``: run one job as a worker does, with the parts of the engine, one job at a time.

recover -> admit -> execute -> complete, in a context of its own, as a worker knows nothing of its caller's.
"""

import asyncio
from collections.abc import Mapping
from contextvars import Context
from typing import Any

from worker.aio.cancel_tasks import cancel_tasks
from worker.config import Config
from worker.engine.admission import Admission
from worker.engine.broker_completer import BrokerCompleter
from worker.engine.execution import Execution
from worker.engine.executions import Executions
from worker.engine.executor import Executor
from worker.engine.job_log import JobLog
from worker.engine.ledger_completer import LedgerCompleter
from worker.engine.limits import Limits, limits_of
from worker.engine.once import Once
from worker.engine.outcome import Outcome
from worker.engine.payload_recovery import PayloadRecovery
from worker.engine.runner import Runner
from worker.engine.slots import Slots
from worker.engine.traced_executor import make_executor
from worker.engine.unknown_jobs import UnknownJobs
from worker.errors import UnknownArgumentsError, UnknownTaskError, WorkerError
from worker.ledger import Ledger
from worker.testing.faults import CrashPoint, Faults, FaultyCaller, MortalOnce, WorkerDiedError
from worker.testing.known_tasks import KnownTasks
from worker.testing.memory_broker import MemoryBroker, QueuedJob

_THREADS = 4  # for plain functions, of which the kit runs one at a time
_TOKEN = "the worker of the test"  # noqa: S105 - it proves a claim, and is no secret


class JobRunner:
    """Runs the jobs of a test.

    Args:
        resources: what tasks get by `Resource`.
        faults: the workers that are to die, and the tasks that are to fail.
    """

    def __init__(self, config: Config, broker: MemoryBroker, resources: Mapping[str, Any], faults: Faults) -> None:
        self._config = config
        self._broker = broker
        self._resources = resources
        self._faults = faults
        self._caller = FaultyCaller(faults, threads=_THREADS)

    async def run(
        self, job: QueuedJob, known: KnownTasks, ledger: Ledger | None, *, is_recorded: bool = True
    ) -> tuple[Execution, Outcome] | None:
        """Run a job once, and record its outcome. None: its worker has died.

        Args:
            known: the tasks that the worker knows.
            is_recorded: whether the queue and the ledger get to know the outcome.
        """
        claim = self._broker.claim_job(job)
        if self._dies(job, "start"):
            self._broker.lose_worker(job)
            return None
        tasks = known.by_name
        limits = limits_of(tasks, self._config)
        widest = Limits.of_unknown(self._config, limits)
        executions = Executions(1)
        ending = _Ending(ledger, self._broker, executions)
        runner = Runner(
            executions,
            Slots(1),
            _Recovery(ledger),
            Admission(
                tasks,
                limits,
                widest,
                max_crashes=self._config.max_crashes,
                accept_pickle=self._config.accept_pickle,
            ),
            self._executor(ledger),
            _UnknownJobs(self._broker, known),
            ending,
            JobLog("off"),
            None,
        )
        Context().run(runner.start, [claim], job.new.queue, _TOKEN, [None])  # type: ignore[list-item]  # no keeper
        (execution,) = executions
        assert execution.asyncio_task is not None  # noqa: S101 - the runner has just set it
        await _to_the_end(execution)
        execution, outcome = ending.ended()
        if isinstance(outcome.error, WorkerDiedError) or self._dies(job, "after_commit"):
            self._broker.lose_worker(job)
            return None
        return execution, await ending.record() if is_recorded else outcome

    def close(self) -> None:
        """Start no more plain functions."""
        self._caller.close()

    def _executor(self, ledger: Ledger | None) -> Executor:
        return make_executor(
            self._caller,
            max_result=self._config.max_result,
            resources=self._resources,
            once=MortalOnce(Once(ledger), self._faults),
        )

    def _dies(self, job: QueuedJob, point: CrashPoint) -> bool:
        return self._faults.crashes.get(job.new.task) == point


async def _to_the_end(execution: Execution) -> None:
    """Wait for a job. If the test is cancelled, the job is interrupted, as by the end of its worker."""
    assert execution.asyncio_task is not None  # noqa: S101 - it was started
    try:
        await asyncio.shield(execution.asyncio_task)
    except asyncio.CancelledError:
        await cancel_tasks([execution.asyncio_task])
        raise


class _Recovery(PayloadRecovery):
    """Recovers no payload: only an expired job has none, and the clock of the test says which job has expired."""

    async def recover(self, execution: Execution) -> None:
        """Leave it."""


class _UnknownJobs(UnknownJobs):
    """Fails unknown jobs at once: no deploy is under way in a test."""

    def __init__(self, broker: MemoryBroker, known: KnownTasks) -> None:
        super().__init__(broker, unknown_for=0.0)
        self._known = known

    async def judge(self, execution: Execution, outcome: Outcome) -> Outcome:
        if isinstance(outcome.error, UnknownTaskError):
            why = self._known.why_unknown or "list it in the registry (WORKER_REGISTRY)"
            name = execution.message.task
            return Outcome.failed(
                WorkerError(f"no task {name!r} is known: {why}, or name it in the test, with 'jobs.use(task)'")
            )
        if isinstance(outcome.error, UnknownArgumentsError):
            return Outcome.failed(outcome.error.for_good(0.0))
        return outcome


class _Ending(LedgerCompleter):
    """Keeps the outcome of one job until it is to be recorded."""

    def __init__(self, ledger: Ledger | None, broker: MemoryBroker, executions: Executions) -> None:
        self._to_broker = _LastWord(broker, executions)
        super().__init__(ledger, self._to_broker)
        self._ended: tuple[Execution, Outcome] | None = None

    def complete(self, execution: Execution, outcome: Outcome) -> None:
        self._ended = execution, outcome

    def ended(self) -> tuple[Execution, Outcome]:
        """The job and its outcome."""
        assert self._ended is not None  # noqa: S101 - the runner completes every job
        return self._ended

    async def record(self) -> Outcome:
        """Write the outcome to the ledger and to the queue. Return what they say: an earlier outcome may stand.

        Raises the errors of the ledger's database.
        """
        super().complete(*self.ended())
        loops = [asyncio.create_task(self.run()), asyncio.create_task(self._to_broker.run())]
        flushed = asyncio.create_task(self.flushed())
        try:
            await asyncio.wait([*loops, flushed], return_when=asyncio.FIRST_COMPLETED)
            for loop in loops:
                if loop.done():
                    loop.result()
        finally:
            await cancel_tasks([*loops, flushed])
        assert self._to_broker.outcome is not None  # noqa: S101 - all is flushed
        return self._to_broker.outcome


class _LastWord(BrokerCompleter):
    """Notes the outcome that is written to the queue."""

    outcome: Outcome | None = None

    def complete(self, execution: Execution, outcome: Outcome) -> None:
        self.outcome = outcome
        super().complete(execution, outcome)
