"""``JobLine``: a job in a list, ``JobPage``: a page of a list, ``Count``: how many jobs there are."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from worker.admin.job_state import JobState
from worker.ledger.search import MOST_COUNTED, Place


@dataclass(frozen=True, slots=True)
class JobLine:
    """A job in a list. Times are milliseconds since the epoch."""

    id: str
    enqueued_at: int | None
    task: str
    queue: str
    state: JobState
    arguments: Any
    """The beginning, redacted. None if they are unknown."""
    tries: int = 0
    due: int | None = None
    started_at: int | None = None
    finished_at: int | None = None
    error: str | None = None
    is_published: bool = True
    """False: its row is pending, and Redis does not have it."""
    worker: str = ""
    """The worker that runs it, or ran it last. Empty if that is not known."""

    @property
    def place(self) -> Place:
        return Place(self.finished_at or 0, self.id, self.enqueued_at or 0)


class JobPage(NamedTuple):
    """One page of a list."""

    lines: list[JobLine]
    next: str | None
    """Where the next page begins. None if this is the last one."""
    searched_to: int | None
    """If the search ended with its time: the time of the job that it got to, in milliseconds since the epoch."""


class Count(NamedTuple):
    """A number of jobs."""

    number: int
    is_more: bool = False
    """Whether there are more than `number`."""

    @classmethod
    def up_to(cls, number: int) -> "Count":
        """A count of the ledger, which ends at a limit."""
        return cls(min(number, MOST_COUNTED), number > MOST_COUNTED)
