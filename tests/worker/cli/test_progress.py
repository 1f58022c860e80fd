from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from worker.cli.progress import Progress, Totals
from worker.cli.progress_output import InLog
from worker.metrics.records import RunningJob, WorkerReport, WorkerState


def record(*, running: int = 0, **counts: Any) -> WorkerReport:
    """Return the report of a worker with these counts."""
    jobs = tuple(RunningJob(str(number), "send", "arq:queue", 1, datetime.now(UTC)) for number in range(running))
    return WorkerReport("a", "process", WorkerState.WORKING, jobs=jobs, **counts)


class TestTotals:
    def test_the_line_sums_the_counts_of_the_supervisors_workers(self) -> None:
        """The line sums the counts of the supervisor's workers; jobs that run nowhere count as queued."""
        totals = Totals(["a", "b", "c"])
        totals.update(
            {
                "a": record(done=1000, failed=2, running=3),
                "b": record(done=234, retried=5, running=4),
                "elsewhere": record(done=7, running=8),
            }
        )
        assert totals.line(100) == "2 of 3 workers · 1,234 done · 2 failed · 5 retried · 7 running · 85 queued"

    def test_the_counts_of_a_dead_worker_are_kept_when_it_is_started_again(self) -> None:
        """The counts from before a worker's death are added once to those after its restart."""
        totals = Totals(["a"])
        totals.update({"a": record(done=5, failed=1)})
        totals.remove_ended("a")
        assert totals.line(0).startswith("0 of 1 worker · 5 done · 1 failed")
        totals.update({})
        assert totals.line(0).startswith("0 of 1 worker · 5 done · 1 failed")
        totals.update({"a": record(done=2)})
        assert totals.line(0).startswith("1 of 1 worker · 7 done · 1 failed")

    def test_the_counts_of_a_silent_worker_are_kept(self) -> None:
        """The counts of a worker without a record for a while stay in the line."""
        totals = Totals(["a"])
        totals.update({"a": record(done=5, running=2)})
        totals.update({})
        assert totals.line(3) == "0 of 1 worker · 5 done · 0 failed · 0 retried · 0 running · 3 queued"


class TestProgress:
    async def test_a_redis_that_does_not_answer_is_reported_and_ends_nothing(self, tmp_path: Path) -> None:
        """If Redis does not answer, the line says so, and the progress goes on."""
        progress = Progress(f"unix://{tmp_path}/none", ["arq:queue"], ["a"], InLog())
        assert (await progress.line()).startswith("Redis does not answer: ")
        await progress.remove_ended("a")
        await progress.close()
