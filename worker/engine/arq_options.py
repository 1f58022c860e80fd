"""``ArqOptions``: the settings of arq's worker that change what the engine does."""

from dataclasses import dataclass

from worker.engine.after_job import AfterJob


@dataclass(frozen=True, slots=True)
class ArqOptions:
    """Settings of arq's that have no counterpart in `Config`. The defaults are Tandem's own."""

    after_job: AfterJob | None = None
    """Called after each job that has run, once its outcome is recorded."""
    retry_jobs: bool = True
    """Whether a job runs again that raises `Retry`, `RetryJob` or a `CancelledError` of its own."""
    log_results: bool = True
    """Whether the log has the results of jobs."""
    max_burst_jobs: int | None = None
    """Attempts that start in all, in burst mode."""
    health_check_key: str | None = None
    """The key of the record in arq's form (default: one for each queue)."""


NO_ARQ_OPTIONS = ArqOptions()
"""Those of a worker without arq's command."""
