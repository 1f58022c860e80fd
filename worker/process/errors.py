"""The error of a worker that cannot start."""

from worker.errors import WorkerError


class StartupError(WorkerError):
    """The worker cannot start. The message is one line with the reason."""
