from pathlib import Path

from worker.cli.display import InLog
from worker.cli.fleet import WorkerRecord
from worker.cli.progress import Progress, Tally


def record(**counts: int) -> WorkerRecord:
    """What a worker says of itself that has done so much."""
    nothing = {"running": 0, "done": 0, "failed": 0, "retried": 0}
    return WorkerRecord(
        queued={"arq:queue": 0}, loop_lag=0, last_heartbeat=0, redis="ok", database="ok", **{**nothing, **counts}
    )


class TestTally:
    def test_sums(self) -> None:
        """The line sums what the supervisor's workers say, and counts as queued what runs nowhere."""
        tally = Tally(["a", "b", "c"])
        tally.take(
            {
                "a": record(done=1000, failed=2, running=3),
                "b": record(done=234, retried=5, running=4),
                "elsewhere": record(done=7, running=8),
            }
        )
        assert tally.line(100) == "2 of 3 workers · 1,234 done · 2 failed · 5 retried · 7 running · 85 queued"

    def test_lives(self) -> None:
        """What a worker had done before it died still counts, once, when it lives again."""
        tally = Tally(["a"])
        tally.take({"a": record(done=5, failed=1)})
        tally.died("a")
        assert tally.line(0).startswith("0 of 1 workers · 5 done · 1 failed")
        tally.take({})
        assert tally.line(0).startswith("0 of 1 workers · 5 done · 1 failed")
        tally.take({"a": record(done=2)})
        assert tally.line(0).startswith("1 of 1 workers · 7 done · 1 failed")

    def test_silence(self) -> None:
        """A worker that says nothing for a while has still done what it had."""
        tally = Tally(["a"])
        tally.take({"a": record(done=5, running=2)})
        tally.take({})
        assert tally.line(3) == "0 of 1 workers · 5 done · 0 failed · 0 retried · 0 running · 3 queued"


class TestProgress:
    async def test_without_redis(self, tmp_path: Path) -> None:
        """A Redis that does not answer is said, and ends nothing."""
        progress = Progress(f"unix://{tmp_path}/none", ["arq:queue"], ["a"], InLog())
        assert (await progress.line()).startswith("Redis does not answer: ")
        await progress.died("a")
        await progress.close()
