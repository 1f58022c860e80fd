"""``BurstEnd``: the value of ``max_burst_jobs`` that lets arq's worker leave its main task."""

from arq.worker import Worker


class BurstEnd(int):
    """0 jobs, and the number that the project gave, for the next run of the same worker."""

    given: int

    @classmethod
    def of(cls, worker: Worker) -> "BurstEnd":
        """Make one for a worker whose burst has ended."""
        end = cls(0)
        end.given = given_limit(worker)
        return end


def given_limit(worker: Worker) -> int:
    """The ``max_burst_jobs`` that the project gave. Negative means no limit."""
    limit = worker.max_burst_jobs
    return limit.given if isinstance(limit, BurstEnd) else limit
