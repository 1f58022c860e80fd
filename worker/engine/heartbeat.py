"""``Heartbeat``: a thread with its own connection that keeps the leases of running jobs, and receives abort requests.

1. It renews each lease several times before its end, so a blocked event loop loses nothing.
2. It acquires a lease again that ended or was lost (a failover, a flush). If another worker has taken or ended the job
   meanwhile, the job is cancelled and rolls back.
3. It lets go of a job that runs for longer than an attempt may take, and logs that. An event loop that is silent for
   that long ends the process.
4. It reports to the keeper that it is alive, and replaces a keeper that has ended. While code keeps the interpreter, no
   thread runs, and the keeper does 1 and 3 instead.
"""

import asyncio
import contextlib
import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence

from db.text.plural import plural
from worker.broker.broker import Broker
from worker.broker.errors import RedisError
from worker.broker.leases import LeaseClient, LeaseOwner
from worker.config import Config
from worker.engine.execution import Execution, Phase
from worker.engine.executions import Executions
from worker.engine.outcome import OutcomeKind
from worker.keeper.keeper import Keeper
from worker.keeper.table import LeaseTable

logger = logging.getLogger("worker")

STUCK = 70
"""The exit code of a process that is stuck (EX_SOFTWARE, sysexits.h)."""

_LONGEST_INTERVAL = 0.5  # seconds: an abort takes effect within a second
_STOPPING = 1.0  # seconds to wait for the thread to end
_WARN_AGAIN = 30.0  # seconds between two warnings that leases cannot be renewed


class Heartbeat:
    """Keeps the leases of executions.

    Args:
        connect: opens a client for the leases of one queue.
        queues: the names of the queues.
        table: the memory that the keeper reads.
        keeper: the keeper of this worker.
        lease: seconds that a claim holds without a renewal.
        silence: seconds for which the event loop may be silent. The limit is longer if a running job may take longer.
    """

    def __init__(
        self,
        executions: Executions,
        connect: Callable[[str], LeaseClient],
        queues: Sequence[str],
        table: LeaseTable,
        keeper: Keeper,
        *,
        lease: float,
        silence: float,
    ) -> None:
        self._executions = executions
        self._overdue: set[Execution] = set()
        self._table = table
        self._keeper = keeper
        self._connect = connect
        self._queues = queues
        self._clients: dict[str, LeaseClient] = {}
        self._lease = lease
        self._interval = min(lease / 4, _LONGEST_INTERVAL)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._loop = _WatchedLoop(self._interval, silence)
        self._last_warning = -_WARN_AGAIN
        self.last_beat = 0.0
        """Time of the last renewal of all leases, by the monotonic clock."""
        self.reacquired = 0
        """Leases that had ended or were lost, and were acquired again."""

    @classmethod
    def of(cls, executions: Executions, table: LeaseTable, broker: Broker, config: Config) -> "Heartbeat":
        """Make the heartbeat of a worker, with its keeper. `silence` is the lease and the grace time."""
        names, lease, silence = config.queue_names, config.lease, config.lease + config.grace
        keeper = Keeper(table, broker.url, names, lease=lease, silence=silence)
        milliseconds = round(lease * 1000)

        def connect(name: str) -> LeaseClient:
            return LeaseClient(broker.url, name, milliseconds)

        return cls(executions, connect, names, table, keeper, lease=lease, silence=silence)

    @property
    def is_fresh(self) -> bool:
        """Whether no lease can have ended since the last beat."""
        return time.monotonic() - self.last_beat < self._lease

    @property
    def lag(self) -> float:
        """Seconds that the event loop took to answer the last beat."""
        return self._loop.lag

    @property
    def lag_now(self) -> float:
        """As `lag`, or the seconds for which the event loop has not answered, if these are more. Any thread may ask."""
        return max(self._loop.lag, self._loop.silence_now)

    def start(self) -> None:
        """Start the thread and the keeper, and watch the event loop that runs now."""
        self._loop.enter()
        self.last_beat = time.monotonic()
        self._table.thread_is_alive(self.last_beat)
        self._table.leases_are_kept(self.last_beat)
        self._report_loop_alive()
        self._keeper.start()
        self._thread.start()

    def stop(self) -> None:
        """End the thread and the keeper. The thread is a daemon: if it still waits for Redis, it is left behind."""
        self._stop.set()
        self._thread.join(_STOPPING)
        self._keeper.dismiss()

    def _run(self) -> None:
        woke_at = time.monotonic()
        while not self._stop.wait(self._interval):
            slept_at, woke_at = woke_at, time.monotonic()
            self._table.thread_is_alive(woke_at)
            if woke_at - slept_at > self._interval + self._lease:
                _log_standstill(woke_at - slept_at)
            if self._loop.is_stuck(self._executions.longest_lease):
                _end_process(self._loop.silent_for)
            self._log_overdue()
            self._keeper.look_after()
            # Each queue separately: an error in one queue must not cost the leases of another.
            kept = [self._renew_or_log(queue) for queue in self._queues]
            if all(kept):
                self.last_beat = time.monotonic()
                self._table.leases_are_kept(woke_at)
            woke_at = time.monotonic()
        for client in self._clients.values():
            client.close()

    def _log_overdue(self) -> None:
        """Log each attempt that runs for longer than it may, once."""
        logged, self._overdue = self._overdue, set(self._executions.overdue)
        for execution in self._overdue - logged:
            logger.error(
                "%s:%s does not end: it has run for longer than its timeout and the time allowed past it, %.0f s. It "
                "keeps its slot. Its lease is not renewed: another worker runs it again, which counts as a crash",
                execution.job_id,
                execution.message.task,
                execution.limits.lease,
            )

    def _report_loop_alive(self) -> None:
        """Report to the keeper, at intervals, that the loop is alive. The thread itself may be waiting for a server."""
        if not self._stop.is_set():
            self._table.loop_is_alive(time.monotonic())
            asyncio.get_running_loop().call_later(self._interval, self._report_loop_alive)

    def _renew_or_log(self, queue: str) -> bool:
        """Renew the leases of one queue, and log an error. Return whether the leases are kept."""
        try:
            self._renew(queue)
        except (RedisError, OSError) as error:
            now = time.monotonic()
            if now - self._last_warning >= _WARN_AGAIN:
                logger.warning("leases of %s cannot be renewed: %s: %s", queue, type(error).__name__, error)
                self._last_warning = now
            return False
        except Exception:
            logger.exception("internal error while renewing leases of %s; the heartbeat goes on", queue)
            return False
        return True

    def _renew(self, queue: str) -> None:
        jobs = self._executions.to_renew(queue)
        if not jobs:
            return
        if queue not in self._clients:
            self._clients[queue] = self._connect(queue)
        client = self._clients[queue]
        lost: list[Execution] = []
        for job, (owner, abort_at) in zip(jobs, client.renew([job.for_renewal for job in jobs]), strict=True):
            if owner is LeaseOwner.ANOTHERS:
                self._loop.call(job.cancel, OutcomeKind.ABANDONED)
            elif owner is LeaseOwner.NOBODYS:
                lost.append(job)
            if job.is_abort_requested(abort_at):
                self._loop.call(job.cancel, OutcomeKind.ABORTED)
        # A job whose outcome is being written is skipped: its lease may be gone because Redis already has the outcome.
        lost = [job for job in lost if job.phase is Phase.RUNNING]
        if lost:
            self._reacquire(lost, client)

    def _reacquire(self, lost: list[Execution], client: LeaseClient) -> None:
        taken = client.reacquire([job.for_renewal for job in lost])
        self.reacquired += sum(taken)
        ended = plural(len(lost), "lease of a running job", "leases of running jobs")
        logger.warning("%s had ended or been lost; %d acquired again", ended, sum(taken))
        for job, ours in zip(lost, taken, strict=True):
            if not ours:
                self._loop.call(job.cancel, OutcomeKind.ABANDONED)


class _WatchedLoop:
    """The event loop, as the heartbeat's thread sees it."""

    def __init__(self, interval: float, silence: float) -> None:
        self._most_at_once = 2 * interval
        self._silence = silence
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked_at = self._seen_at = 0.0
        self._answered = True
        self.silent_for = 0.0
        """Seconds without an answer while this thread was awake: a process that was frozen is not stuck."""
        self.lag = 0.0

    def enter(self) -> None:
        """Watch the event loop that runs now."""
        self._loop = asyncio.get_running_loop()
        self._asked_at = time.monotonic()

    def is_stuck(self, allowance: float) -> bool:
        """Whether the loop has not answered for longer than both `allowance` and `silence` seconds."""
        now = time.monotonic()
        if self._answered:
            self.silent_for = 0.0
            self._answered, self._asked_at = False, now
            self.call(self._record_answer)
        else:
            self.silent_for += min(now - self._seen_at, self._most_at_once)
        self._seen_at = now
        return self.silent_for > max(allowance, self._silence)

    @property
    def silence_now(self) -> float:
        """Seconds since the loop was asked, if it has not answered yet."""
        return 0.0 if self._answered else time.monotonic() - self._asked_at

    def call(self, callback: Callable[..., None], *arguments: object) -> None:
        """Call `callback` on the loop, soon."""
        assert self._loop is not None  # noqa: S101 - enter() came first
        with contextlib.suppress(RuntimeError):  # the loop has closed: the process is ending
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _record_answer(self) -> None:
        self._answered = True
        self.lag = time.monotonic() - self._asked_at


def _log_standstill(seconds: float) -> None:
    logger.warning(
        "this process stood still for %.1f s: it was frozen, or code kept the interpreter (a regular expression that "
        "backtracks, a C call); run such code in a process of its own",
        seconds,
    )


def _end_process(silent_for: float) -> None:
    logger.critical("the event loop has not answered for %.0f s: ending the process; its threads:", silent_for)
    faulthandler.dump_traceback()
    os._exit(STUCK)
