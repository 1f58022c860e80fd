"""Run one job here, in this process, for ``tandem jobs run``.

1. The job runs as in a worker: the same executor, resources, session and outcome. Nothing is claimed.
2. Unless it is to be committed, its transaction is rolled back after the body. What the body itself commits stays.
3. It has no timeout, so that a debugger may stop it. The caller opens a default database that allows for that.
"""

import asyncio
from dataclasses import replace

from db.scope import Scope
from worker.broker.records import Claim, now_ms
from worker.client.options import LONGEST
from worker.config import Config
from worker.engine.execution import Execution
from worker.engine.executor import Executor
from worker.engine.limits import Limits
from worker.engine.once import Attempt, Once, done_row
from worker.engine.outcome import Outcome, OutcomeKind
from worker.ledger import Ledger
from worker.message import Message
from worker.process.runtime import Runtime
from worker.registry import Registry


class _RolledBackError(Exception):
    """The body has returned, and its transaction is to be rolled back."""

    def __init__(self, result: bytes) -> None:
        super().__init__(result)
        self.result = result


class _RollBack(Attempt):
    async def complete(self, work: Scope, result: bytes) -> None:  # noqa: ARG002 - an attempt's signature
        raise _RolledBackError(result)


class _Rehearsal(Once):
    """Creates attempts that are rolled back once their body has returned."""

    def __init__(self) -> None:
        super().__init__(None)

    def attempt(self, execution: Execution) -> Attempt:  # noqa: ARG002 - the signature of `Once`
        return _RollBack()


async def run_single(
    config: Config, registry: Registry, message: Message, queue: str, *, tries: int = 0, commit: bool = False
) -> Outcome:
    """Run a job and return its outcome. It is completed if its body returned, whether it was committed or not.

    Args:
        tries: the attempts that have failed before.
        commit: commit the job's transaction, and set its row done.

    Raises:
        StartupError: as a worker's start raises it.
    """
    runtime = Runtime(config, registry)
    try:
        await runtime.open({})
        ledger = Ledger(config.ledger, keep_arguments=config.keep_arguments)
        executor = runtime.executor.with_once(Once(ledger) if commit else _Rehearsal())
        execution = _execution(config, registry, message, queue, tries)
        outcome = await asyncio.create_task(_execute(executor, execution))
        if isinstance(outcome.error, _RolledBackError):
            return Outcome(OutcomeKind.COMPLETED, result=outcome.error.result)
        if commit and outcome.kind is OutcomeKind.COMPLETED and not outcome.in_ledger:
            await ledger.complete([done_row(execution, outcome.result, keep_arguments=False)])
        return outcome
    finally:
        await runtime.close()


async def _execute(executor: Executor, execution: Execution) -> Outcome:
    executor.enter(execution)
    return await executor.execute(execution)


def _execution(config: Config, registry: Registry, message: Message, queue: str, tries: int) -> Execution:
    task = registry.tasks[message.task]
    score = str(message.enqueued_at).encode()
    claim = Claim(message.job_id.encode(), b"", score, tries, 0, None)
    limits = replace(Limits.of(task, config), timeout=LONGEST)
    execution = Execution(claim, queue, "", now_ms(), limits)
    execution.message, execution.task = message, task
    return execution
