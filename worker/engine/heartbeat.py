"""``Heartbeat``: a thread with its own connection that keeps the leases of running jobs, and hears of aborts.

1. It renews every lease a few times before its end, so a blocked event loop loses nothing.
2. Where Redis knows no owner of a job (a failover, a flush), it takes the lease again; where it knows another one, the
   job is cancelled and rolls back.
3. It lets go of a job at its timeout and grace; an event loop that is silent for that long ends the process.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence

from redis.exceptions import RedisError

from worker.engine.held import HeldJob, HeldJobs, Phase
from worker.engine.outcome import Kind
from worker.renewal import Grip, Renewal

logger = logging.getLogger("worker")

_LONGEST_INTERVAL = 0.5  # seconds: an abort is heard within a second
_STUCK = 70  # the exit code of a process whose event loop is stuck (EX_SOFTWARE, sysexits.h)


class Heartbeat:
    """Keeps the leases of `held`.

    Args:
        connect: opens the line to one queue's Redis.
        queues: their names.
        lease: seconds that a claim holds without a renewal.
        silence: seconds that the event loop may be silent while it holds no job.
    """

    def __init__(
        self, held: HeldJobs, connect: Callable[[str], Renewal], queues: Sequence[str], *, lease: float, silence: float
    ) -> None:
        self._held = held
        self._connect = connect
        self._queues = queues
        self._interval = min(lease / 4, _LONGEST_INTERVAL)
        self._silence = silence
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_seen = time.monotonic()
        self._failing = False
        self.lag = 0.0
        """Seconds that the event loop took to answer the last beat."""
        self.last_beat = 0.0
        """When Redis last confirmed the leases, by the monotonic clock."""

    def start(self) -> None:
        """Begin, for the event loop that runs now."""
        self._loop = asyncio.get_running_loop()
        self._loop_seen = self.last_beat = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        lines = {queue: self._connect(queue) for queue in self._queues}
        while not self._stop.wait(self._interval):
            self._watch_loop()
            try:
                for queue, line in lines.items():
                    self._beat(queue, line)
            except (RedisError, OSError) as error:
                self._say_once(error)
            except Exception:
                logger.exception("the heartbeat stumbled; it goes on")
            else:
                self.last_beat, self._failing = time.monotonic(), False
        for line in lines.values():
            line.close()

    def _beat(self, queue: str, line: Renewal) -> None:
        jobs = self._held.to_renew(queue)
        if not jobs:
            return
        lost: list[HeldJob] = []
        for job, (grip, abort_at) in zip(jobs, line.renew([job.for_renewal for job in jobs]), strict=True):
            if grip is Grip.ANOTHERS:
                self._on_loop(job.cancel, Kind.ABANDONED)
            elif grip is Grip.NOBODYS:
                lost.append(job)
            if job.asked_to_abort(abort_at):
                self._on_loop(job.cancel, Kind.ABORTED)
        # One whose outcome is on its way is left alone: Redis may have forgotten it because it has just been finished.
        lost = [job for job in lost if job.phase is Phase.RUNNING]
        if lost:
            taken = line.retake([job.for_renewal for job in lost])
            logger.warning("Redis had lost %d leases of running jobs; %d are taken again", len(lost), sum(taken))

    def _watch_loop(self) -> None:
        asked_at = time.monotonic()

        def answer() -> None:
            self._loop_seen = time.monotonic()
            self.lag = self._loop_seen - asked_at

        self._on_loop(answer)
        limit = max(self._loop_seen + self._silence, self._held.latest_renewal())
        if asked_at > limit:
            logger.critical(
                "the event loop has not answered for %.0f s: ending the process", asked_at - self._loop_seen
            )
            os._exit(_STUCK)

    def _on_loop(self, callback: Callable[..., None], *arguments: object) -> None:
        assert self._loop is not None  # noqa: S101 - start() came first
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:  # the loop has closed: the process is ending
            self._stop.set()

    def _say_once(self, error: Exception) -> None:
        if not self._failing:
            logger.warning("leases cannot be renewed: %s: %s", type(error).__name__, error)
        self._failing = True
