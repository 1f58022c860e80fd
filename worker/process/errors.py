"""The error of a start that has failed."""

from worker.errors import WorkerError


class StartupError(WorkerError):
    """The worker cannot start; one line says why."""
