"""The logs of a run, on disk and append-only: faults, actions of producers, runs of jobs without a database effect.

A producer logs each action before it begins and after it has ended. It may be killed between the two, or get no answer
to a COMMIT. Then the marker row that each transaction inserts about itself says whether it was committed.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

_RUN_LOG_VARIABLE = "CHAOS_RUN_LOG"


class AppendLog:
    """A file that any number of processes append whole lines to.

    A line survives a kill -9 of its writer: the kernel has it. Only a crash of the machine would lose it, which is not
    one of the faults; so there is no fsync.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def from_environment(cls) -> Self:
        """The log that this process was given by its environment."""
        return cls(Path(os.environ[_RUN_LOG_VARIABLE]))

    @property
    def environment(self) -> dict[str, str]:
        """The variable that gives this log to a process."""
        return {_RUN_LOG_VARIABLE: str(self._path)}

    def append(self, line: str) -> None:
        """Write one line in one system call."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, f"{line}\n".encode())
        finally:
            os.close(descriptor)

    def read(self) -> list[str]:
        """All lines so far."""
        return self._path.read_text().splitlines() if self._path.exists() else []


@dataclass(frozen=True, slots=True)
class RedisWipe:
    """A moment at which Redis lost all its data. Times are seconds since the epoch."""

    started: float
    """A job that was enqueued later may be lost or not."""
    ended: float
    lost_job_ids: frozenset[str]
    """The jobs that Redis held just before."""

    def may_have_lost(self, job_id: str, started: float, ended: float) -> bool:
        """Whether a job that was enqueued between `started` and `ended` may be lost."""
        return job_id in self.lost_job_ids or (started <= self.ended and self.started <= ended)


@dataclass
class FaultLog:
    """Counts the faults of a run and writes each event to ``faults.log``."""

    folder: Path
    print_line: Callable[[str], None]
    injected: Counter[str] = field(default_factory=Counter)
    """How often each fault was injected."""
    skipped: Counter[str] = field(default_factory=Counter)
    """How often it was drawn and not injected: its target had another fault, or made no COMMIT in time."""
    process_failures: list[str] = field(default_factory=list)
    """Processes that ended without a fault, or did not end when they were told to."""
    wipes: list[RedisWipe] = field(default_factory=list)

    def append(self, line: str) -> None:
        """Write and print an event, with the time."""
        line = f"{timestamp()} {line}"
        AppendLog(self.folder / "faults.log").append(line)
        self.print_line(line)

    def append_process_failure(self, line: str) -> None:
        """Write an event that fails the run."""
        self.process_failures.append(f"{timestamp()} {line}")
        self.append(line)


class Intent(StrEnum):
    """How a producer means to enqueue a job."""

    COMMIT = "commit"
    """In a transaction that it commits."""
    ROLLBACK = "rollback"
    """In a transaction that it rolls back."""
    SAVEPOINT_ROLLBACK = "savepoint rollback"
    """In a savepoint that it rolls back; the transaction may commit."""
    DIRECT = "direct"
    """Straight to Redis, in no transaction."""


class Outcome(StrEnum):
    """What a producer was told of an action."""

    OK = "ok"
    ABORTED = "aborted"
    """Rolled back, as intended."""
    UNKNOWN = "unknown"
    """An error, after which the transaction may be committed or not."""


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """A job that a producer is about to enqueue."""

    key: str
    task: str
    intent: Intent
    arguments: dict[str, Any]
    job_id: str | None = None
    """The producer's own id for it. If another job has the id, this one is not enqueued."""
    delay: float = 0.0
    """Seconds until it is due."""


@dataclass(frozen=True, slots=True)
class ActionRecord:
    """One logged action of a producer: a transaction, or jobs enqueued directly. Times are seconds since the epoch."""

    action: str
    jobs: tuple[PlannedJob, ...]
    started: float
    ended: float | None = None
    """None: the producer was killed before it was told anything."""
    outcome: Outcome = Outcome.UNKNOWN
    job_ids: dict[str, str] | None = None
    """The ids of its new jobs by key, as far as the producer was told."""


class ActionLog:
    """The actions of one producer."""

    def __init__(self, folder: Path, producer: str) -> None:
        self._log = AppendLog(folder / f"actions-{producer}")

    def append_start(self, action: str, jobs: Iterable[PlannedJob]) -> None:
        """Log the intention, before the action."""
        self._append(action=action, started=time.time(), jobs=[asdict(job) for job in jobs])

    def append_end(self, action: str, outcome: Outcome, job_ids: dict[str, str]) -> None:
        """Log what the producer was told, after the action."""
        self._append(action=action, ended=time.time(), outcome=outcome, job_ids=job_ids)

    def _append(self, **record: object) -> None:
        self._log.append(json.dumps(record))


def read_action_logs(folder: Path) -> list[ActionRecord]:
    """All actions of all producers."""
    return [record for path in sorted(folder.glob("actions-*")) for record in _read_action_log(path)]


def timestamp() -> str:
    """The time to the millisecond, in the format of the workers' logs."""
    return datetime.fromtimestamp(time.time()).astimezone().strftime("%H:%M:%S.%f")[:-3]


def _read_action_log(path: Path) -> list[ActionRecord]:
    actions: dict[str, dict[str, Any]] = {}
    for line in AppendLog(path).read():
        record = json.loads(line)
        actions.setdefault(record["action"], {}).update(record)
    return [_decode(record) for record in actions.values()]


def _decode(record: dict[str, Any]) -> ActionRecord:
    jobs = tuple(PlannedJob(**{**job, "intent": Intent(job["intent"])}) for job in record.pop("jobs"))
    outcome = Outcome(record.pop("outcome", Outcome.UNKNOWN))
    return ActionRecord(jobs=jobs, outcome=outcome, **record)
