"""``JobQuery``: which jobs to list."""

from dataclasses import dataclass

from worker.admin.job_state import JobState


@dataclass(frozen=True, slots=True)
class JobQuery:
    """What to list. All conditions must hold."""

    state: JobState = JobState.DONE
    id: str | None = None
    """The id, or its beginning. Then `state` does not count."""
    task: str | None = None
    queue: str | None = None
    error: str | None = None
    text: str | None = None
    """A part of the arguments."""
    since: int | None = None
    """When the job ended, or is due: milliseconds since the epoch."""
    until: int | None = None

    @property
    def is_filtered(self) -> bool:
        """Whether there is a condition besides the state."""
        return any(
            value is not None
            for value in (self.id, self.task, self.queue, self.error, self.text, self.since, self.until)
        )
