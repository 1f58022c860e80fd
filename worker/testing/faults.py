"""``Faults``: workers that die, and tasks that fail, because a test says so."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from db.scope import Scope
from worker.engine.execution import Execution
from worker.engine.once import Attempt, Once
from worker.engine.task_caller import TaskCaller
from worker.errors import WorkerError
from worker.task import Task

CrashPoint = Literal["start", "before_commit", "after_commit"]
"""Where a worker dies: before the task begins, after its body and before the COMMIT, or after the COMMIT."""

_POINTS = ("start", "before_commit", "after_commit")


class WorkerDiedError(BaseException):
    """The worker dies here. No code of a task can catch it, as it is raised after the body."""


@dataclass
class Faults:
    """The faults that are in force, by the name of the task."""

    crashes: dict[str, CrashPoint] = field(default_factory=dict)
    failures: dict[str, BaseException] = field(default_factory=dict)

    @contextmanager
    def crash(self, task: Task[..., Any], at: CrashPoint) -> Iterator[None]:
        """Let the worker of each job of `task` die, in a block."""
        if at not in _POINTS:
            raise WorkerError(f"crash(at={at!r}) is not one of {', '.join(map(repr, _POINTS))}")
        before = self.crashes.get(task.name)
        self.crashes[task.name] = at
        try:
            yield
        finally:
            _restore(self.crashes, task.name, before)

    @contextmanager
    def fail(self, task: Task[..., Any], error: BaseException) -> Iterator[None]:
        """Let each attempt of `task` raise `error` in place of its body, in a block."""
        before = self.failures.get(task.name)
        self.failures[task.name] = error
        try:
            yield
        finally:
            _restore(self.failures, task.name, before)


class FaultyCaller(TaskCaller):
    """Calls tasks, but raises the errors that `Faults` has for them."""

    def __init__(self, faults: Faults, **options: Any) -> None:
        super().__init__(**options)
        self._faults = faults

    async def call(self, execution: Execution, scope: Scope) -> Any:
        error = self._faults.failures.get(execution.task.name)
        if error is not None:
            raise error
        return await super().call(execution, scope)


class MortalOnce(Once):
    """Keeps effects from happening twice, in a worker that `Faults` may let die before the COMMIT."""

    def __init__(self, once: Once, faults: Faults) -> None:
        super().__init__(None)
        self._once = once
        self._faults = faults

    def attempt(self, execution: Execution) -> Attempt:
        if self._faults.crashes.get(execution.task.name) == "before_commit":
            return _DyingAttempt()
        return self._once.attempt(execution)


class _DyingAttempt(Attempt):
    async def complete(self, work: Scope, result: bytes) -> None:  # noqa: ARG002 - an attempt's signature
        raise WorkerDiedError


def _restore(faults: dict[str, Any], name: str, before: Any) -> None:
    if before is None:
        faults.pop(name, None)
    else:
        faults[name] = before
