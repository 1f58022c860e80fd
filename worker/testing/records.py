"""What the kit tells a test: `EnqueuedJob`, `Run` and `Tally`."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

R = TypeVar("R", covariant=True)  # noqa: PLC0105 - a plain name reads better in signatures

RunOutcome = Literal[
    "completed",
    "duplicate",
    "retried",
    "failed",
    "aborted",
    "expired",
    "interrupted",
    "postponed",
    "abandoned",
    "crashed",
]
"""How an attempt ended, in the words of the engine. ``"crashed"``: the test let its worker die."""


@dataclass(frozen=True)
class EnqueuedJob:
    """A job that waits.

    ::

        job = await jobs.assert_enqueued(ship)
        assert job.args == {"order_id": 7}
    """

    id: str
    task: str
    """The name of its task."""
    args: Mapping[str, Any]
    """The arguments that its caller gave, by name, as the task gets them."""
    queue: str
    due: datetime
    """When it may run, in UTC by the clock of the test."""
    delay: float
    """Seconds from its enqueueing until it is due. 0 if it was due at once."""
    enqueued_at: datetime
    """In UTC."""
    attempt: int = 1
    """The number of its next try."""

    def __str__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.args.items())
        details = [f"queue {self.queue}"]
        if self.delay > 0:
            details.append(f"due after {self.delay:g} s")
        if self.attempt > 1:
            details.append(f"attempt {self.attempt}")
        return f"{self.task}({arguments}), {', '.join(details)}"


@dataclass(frozen=True)
class Run(Generic[R]):
    """One attempt of a job, and how it ended.

    ::

        run = await jobs.perform(ship, order_id=7)
        assert run.outcome == "completed"
        assert run.result == "shipped"
    """

    job: EnqueuedJob
    outcome: RunOutcome
    value: Any = field(default=None, repr=False)
    """The return value, if the job is completed."""
    error: BaseException | None = None
    """The error that ended the attempt."""
    retry_in: float | None = None
    """Seconds until the next attempt. None: there is none."""

    @property
    def result(self) -> R:
        """What the task returned, in the type of its annotation.

        Raises:
            BaseException: the job's own error, if it is not completed.
        """
        if self.outcome in ("completed", "duplicate"):
            result: R = self.value
            return result
        if self.error is not None:
            raise self.error
        raise AssertionError(f"{self.job} has no result: it was {self.outcome}")


@dataclass
class Tally:
    """The runs of one `drain` or `advance`, in their order.

    ::

        tally = await jobs.drain(raises=False)
        assert tally.counts == {"completed": 2, "failed": 1}
    """

    runs: list[Run[Any]] = field(default_factory=list)

    @property
    def completed(self) -> int:
        return self._counts["completed"] + self._counts["duplicate"]

    @property
    def retried(self) -> int:
        return self._counts["retried"]

    @property
    def failed(self) -> int:
        return self._counts["failed"]

    @property
    def counts(self) -> dict[str, int]:
        """The number of runs by their outcome."""
        return dict(self._counts)

    @property
    def _counts(self) -> Counter[str]:
        return Counter(run.outcome for run in self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def __str__(self) -> str:
        return ", ".join(f"{number} {outcome}" for outcome, number in self._counts.items()) or "no runs"
