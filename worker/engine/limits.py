"""``Limits``: what a task's jobs may take, worked out once, when the worker starts."""

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
    """Seconds for which the lease of an attempt is kept: its timeout, and the time that its body needs to be cancelled
    and rolled back, or that it waits until it runs again."""

    @classmethod
    def of(cls, task: Task[..., Any], config: Config) -> "Limits":
        """Work out the limits of a task."""
        options = task.options
        return cls._made(
            config.job_timeout if options.timeout is None else options.timeout,
            config.max_tries if options.max_tries is None else options.max_tries,
            config.keep_result if options.keep_result is None else options.keep_result,
            config,
        )

    @classmethod
    def of_unknown(cls, config: Config, known: Mapping[str, "Limits"]) -> "Limits":
        """The limits of a job whose task is not known, or not known yet: its lease is kept as long as any."""
        default = cls._made(config.job_timeout, config.max_tries, config.keep_result, config)
        longest = max((limits.lease for limits in known.values()), default=config.grace)
        return cls(default.timeout, default.max_tries, default.keep_result, longest)

    @classmethod
    def _made(cls, timeout: float, max_tries: int, keep_result: float, config: Config) -> "Limits":
        return cls(timeout, max_tries, milliseconds(keep_result), timeout + max(config.grace, LONGEST_PAUSE))


def limits_of(tasks: Mapping[str, Task[..., Any]], config: Config) -> dict[str, Limits]:
    """Work out the limits of each task, by its name."""
    return {name: Limits.of(task, config) for name, task in tasks.items()}


def milliseconds(seconds: float) -> int:
    """Seconds as Redis takes them; it knows no longer time than `LONGEST`."""
    return round(min(seconds, LONGEST) * 1000)
