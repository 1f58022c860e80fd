"""``Limits``: the limits of a task's jobs, worked out once, when the worker starts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.client.options import LONGEST
from worker.config import Config
from worker.engine.rerun_policy import LONGEST_PAUSE
from worker.task import Task


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one task's jobs: the task's options, or the worker's settings where it has none."""

    timeout: float
    """Seconds that one attempt may take."""
    max_tries: int
    """Attempts before the job fails for good."""
    keep_result: int
    """Milliseconds that the result is kept."""
    lease: float
    """Seconds for which the lease of an attempt is kept.

    The timeout, plus the longer of two times: to cancel and roll back the body, or to wait before a rerun. And the time
    for which a chunk waits for more jobs.
    """

    @classmethod
    def of(cls, task: Task[..., Any], config: Config) -> "Limits":
        """Work out the limits of a task."""
        options = task.options
        return cls._made(
            config.job_timeout if options.timeout is None else options.timeout,
            config.max_tries if options.max_tries is None else options.max_tries,
            config.keep_result if options.keep_result is None else options.keep_result,
            config,
            wait=0.0 if options.chunk is None else options.chunk.wait,
        )

    @classmethod
    def of_unknown(cls, config: Config, limits: Mapping[str, "Limits"]) -> "Limits":
        """The limits of a job whose task is unknown, or not read yet. Its lease is the longest of all tasks'."""
        default = cls._made(config.job_timeout, config.max_tries, config.keep_result, config)
        longest = max((each.lease for each in limits.values()), default=config.grace)
        return cls(default.timeout, default.max_tries, default.keep_result, longest)

    @classmethod
    def _made(
        cls, timeout: float, max_tries: int, keep_result: float, config: Config, *, wait: float = 0.0
    ) -> "Limits":
        return cls(timeout, max_tries, milliseconds(keep_result), wait + timeout + max(config.grace, LONGEST_PAUSE))


def limits_of(tasks: Mapping[str, Task[..., Any]], config: Config) -> dict[str, Limits]:
    """Work out the limits of each task, by its name."""
    return {name: Limits.of(task, config) for name, task in tasks.items()}


def milliseconds(seconds: float) -> int:
    """Convert seconds to milliseconds for Redis, at most `LONGEST`."""
    return round(min(seconds, LONGEST) * 1000)
