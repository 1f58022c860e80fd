"""``BulkProgress``: which failed jobs a bulk action is for, and how far it has come."""

import time
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from worker.ledger.search import RowFilter

_SILENT = 20.0  # seconds without progress after which a bulk action's process is taken to be dead


class BulkAction(StrEnum):
    RETRY = "retry"
    DISCARD = "discard"


class Selection(BaseModel):
    """Which failed jobs a bulk action is for. All conditions must hold."""

    model_config = ConfigDict(frozen=True)

    task: str | None = None
    kind: str | None = None
    queue: str | None = None
    until: int
    """Jobs that failed later are not meant: milliseconds since the epoch."""

    @property
    def row_filter(self) -> RowFilter:
        return RowFilter(task=self.task, queue=self.queue, until=self.until)

    @property
    def subject(self) -> str:
        """The selection in words."""
        parts = [self.task or "all tasks", *([self.kind] if self.kind is not None else [])]
        return ": ".join(parts) + (f" (queue {self.queue})" if self.queue else "")


class BulkState(StrEnum):
    """How far a bulk action is."""

    TRYING = "trying"
    """One job is retried first."""
    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    """An operator has asked it to stop, or the first job failed again."""
    BROKEN = "broken"
    """An error has ended it."""

    @property
    def is_over(self) -> bool:
        return self in (BulkState.DONE, BulkState.STOPPED, BulkState.BROKEN)


class BulkProgress(BaseModel):
    """A bulk action, and how far it has come."""

    model_config = ConfigDict(frozen=True)

    id: str
    action: BulkAction
    actor: str
    selection: Selection
    total: int
    total_is_more: bool = False
    pace: float | None = None
    """Jobs a second. None: as fast as it goes."""
    one_first: bool = False
    state: BulkState = BulkState.RUNNING
    done: int = 0
    rejected: int = 0
    note: str = ""
    first_job: str | None = None
    started_at: int = 0
    """Milliseconds since the epoch."""
    updated_at: int = 0

    @property
    def is_silent(self) -> bool:
        """Whether the process that did it seems to be gone."""
        return not self.state.is_over and _now() - self.updated_at > _SILENT * 1000


def _now() -> int:
    return time.time_ns() // 1_000_000
