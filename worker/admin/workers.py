"""``WorkerAdmin``: list live workers, and quiet, resume and stop one from afar."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from worker.admin.deployment import Deployment


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job that a worker runs."""

    id: str
    task: str
    attempt: int
    since: datetime


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A live worker, from the record that it writes every second. None: its version does not tell."""

    id: str
    queues: tuple[str, ...]
    state: str
    """``working``, ``quiet``, ``draining``, ``starting`` or ``unwell``."""
    why: str = ""
    """Why it is unwell."""
    running: int = 0
    slots: int | None = None
    jobs: tuple[RunningJob, ...] = ()
    record: dict[str, Any] | None = None
    """The whole record."""


class WorkerAdmin:
    """The workers of a deployment.

    Args:
        deployment: where the workers are (default: the servers of this process).
    """

    def __init__(self, deployment: Deployment | None = None) -> None:
        self._deployment = deployment or Deployment.of_process()

    async def list(self) -> list[WorkerInfo]:
        """The workers that have a record, by id."""
        raise NotImplementedError

    async def quiet(self, worker_id: str, *, actor: str) -> bool:
        """Let a worker claim nothing more. Its running jobs go on, and it stays up until it is stopped or resumed.

        Returns:
            Whether a worker of this id has a record. The command is sent in any case, and holds for a minute.
        """
        raise NotImplementedError

    async def resume(self, worker_id: str, *, actor: str) -> bool:
        """Let a quiet worker claim again. Returns as `quiet`."""
        raise NotImplementedError

    async def stop(self, worker_id: str, *, actor: str) -> bool:
        """Let a worker drain and exit with 0, as on SIGTERM. Its process manager may start another one.

        Returns:
            As `quiet`.
        """
        raise NotImplementedError
