"""The keeper's process, started by ``python -c ...``.

1. While the worker renews its leases, the keeper only reads the time of the last renewal, a few times a lease.
2. If the heartbeat is silent while the worker runs, code blocks the interpreter: a regular expression that backtracks,
   or a C call. Then the keeper renews the lease of each job until the job's limit. It never reacquires a lost lease.
3. A stopped worker (SIGSTOP, a frozen container) does not run. Its leases end, so that other workers can run its jobs.
4. A worker that is silent for longer than any of its jobs may take cannot end itself. The keeper makes it print the
   stacks of its threads, and kills it.
5. When the worker dies, of whatever cause, the kernel reports it, and the keeper gives the worker's jobs back at once.
"""

import json
import os
import select
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from worker.keeper.client import Redis, RefusedError
from worker.keeper.table import KeptJob, TableReader

DISMISSED = b"."
"""The message of a worker that ends in order."""

_BATCH = 500  # jobs a round trip
_OURS = 1  # the reply of the scripts for a job that the worker held
_LONGEST_CALL = 5.0  # seconds
_RETRY_PAUSE = 0.2  # seconds between two attempts to give jobs back
_PARENT_POLL = 0.1  # seconds between two reads of the parent's id, if the system has no pidfd
_DEATH_TIMEOUT = 5.0  # seconds from the closing of the pipe to the death of the worker, at most
_STACKS_TIMEOUT = 1.0  # seconds that a worker has to print its stacks


class KeeperOptions(NamedTuple):
    """The options that a keeper gets when it starts."""

    worker: int
    """The worker's process id."""
    lease: float
    silence: float
    """Seconds for which the worker may be silent, unless the limit of a running job is longer."""
    stacks_signal: int
    """The signal on which the worker prints the stacks of its threads; 0 if the system has none."""
    servers: dict[str, Any]
    queues: list[list[str]]
    """For each queue: its name, the prefix of its keys, and the channel that wakes idle workers."""
    renew: str
    release: str
    """The texts of the scripts `renew` and `release`."""


class Keeper:
    """Renews the leases of one worker."""

    def __init__(self, options: KeeperOptions, table: TableReader, worker: "_Worker") -> None:
        self._options = options
        self._table = table
        self._worker = worker
        self._redis = Redis(options.servers, min(options.lease / 4, _LONGEST_CALL))
        self._interval = options.lease / 8
        self._checked_at = self._renewed_at = time.monotonic()
        self._alive_at = 0.0
        self._silent_for = 0.0
        self._is_renewing = False

    def run(self) -> None:
        """Watch the worker until it dies or dismisses the keeper."""
        self._table.set_keeper(os.getpid())
        while self._worker.wait(self._interval):
            self._check()
        if self._worker.has_died:
            self._give_back()

    def _check(self) -> None:
        now = time.monotonic()
        last_check, self._checked_at = self._checked_at, now
        if self._table.alive_at != self._alive_at:
            self._alive_at, self._silent_for = self._table.alive_at, 0.0
        if now - self._table.kept_since < self._options.lease * 3 / 8:
            self._is_renewing = False
            return
        state = self._worker.state()
        if state in ("T", "t"):
            return
        # If this process was frozen, the worker may have been frozen too. So a long gap counts as two intervals only.
        self._silent_for += min(now - last_check, 2 * self._interval)
        jobs = self._table.jobs()
        if state and self._is_stuck(jobs, now):
            self._kill_worker(jobs)
        elif now - self._renewed_at >= self._options.lease / 4:
            self._renewed_at = now
            self._renew([job for job in jobs if now < job.until])

    def _is_stuck(self, jobs: Sequence[KeptJob], now: float) -> bool:
        """Whether the worker is silent for longer than any job that has begun may take."""
        return self._silent_for > self._options.silence and all(now > job.until for job in jobs if job.has_begun)

    def _kill_worker(self, jobs: Sequence[KeptJob]) -> None:
        begun = ", ".join(ascii(job.job_id.decode(errors="backslashreplace")) for job in jobs if job.has_begun)
        _log(
            f"worker {self._worker.process}: code has blocked the interpreter for {self._silent_for:.0f} s, longer "
            f"than any of its jobs may take; killing the worker (jobs that had begun: {begun or 'none'}). Its stacks:"
        )
        if self._options.stacks_signal:
            self._worker.send(self._options.stacks_signal)
            self._worker.wait(_STACKS_TIMEOUT)
        self._worker.send(signal.SIGKILL)

    def _renew(self, jobs: Sequence[KeptJob]) -> None:
        def renew(queue: list[str], batch: Sequence[KeptJob]) -> int:
            name, prefix, _wake = queue
            lease = round(self._options.lease * 1000)
            states: list[int] = self._redis.run(self._options.renew, name, [prefix, lease, *_ids_and_tokens(batch)])[
                ::2
            ]
            return states.count(_OURS)

        renewed, _ = self._for_each_queue(jobs, renew)
        if renewed and not self._is_renewing:
            self._is_renewing = True
            silent_for = time.monotonic() - self._table.kept_since
            is_silent = time.monotonic() - self._table.alive_at > self._options.lease * 3 / 8
            why = "as if code blocked its interpreter" if is_silent else "although it runs: Redis may have been slow"
            _log(
                f"worker {self._worker.process} has renewed no lease for {silent_for:.1f} s, {why}: "
                f"the keeper renews {renewed} of {len(jobs)} meanwhile"
            )

    def _give_back(self) -> None:
        """Give all jobs back. Retry for the length of a lease: after that, the leases of the rest have ended anyway."""

        def release(queue: list[str], batch: Sequence[KeptJob]) -> int:
            name, prefix, wake = queue
            states: list[int] = self._redis.run(self._options.release, name, [prefix, wake, *_ids_and_tokens(batch)])
            return states.count(_OURS)

        jobs = self._table.jobs()
        given_back, left = self._for_each_queue(jobs, release)
        end = time.monotonic() + self._options.lease
        while left and time.monotonic() < end:
            time.sleep(_RETRY_PAUSE)
            more, left = self._for_each_queue(left, release)
            given_back += more
        _log(f"worker {self._worker.process} has died: gave back {given_back} of its {_jobs(len(jobs))}")

    def _for_each_queue(
        self, jobs: Sequence[KeptJob], do: Callable[[list[str], Sequence[KeptJob]], int]
    ) -> tuple[int, list[KeptJob]]:
        """Call `do` with the jobs of each queue, in batches. Return how many were ours, and the jobs that failed."""
        by_queue: defaultdict[int, list[KeptJob]] = defaultdict(list)
        for job in jobs:
            by_queue[job.queue].append(job)
        done, failed = 0, list[KeptJob]()
        for queue, queue_jobs in by_queue.items():
            for first in range(0, len(queue_jobs), _BATCH):
                batch = queue_jobs[first : first + _BATCH]
                try:
                    done += do(self._options.queues[queue], batch)
                except (OSError, RefusedError):
                    failed += batch
        return done, failed


class _Worker:
    """The worker's process, as the keeper sees it.

    The kernel reports the worker's death through a pidfd (Linux), or else by giving this process another parent. A
    closed pipe proves nothing: the worker may have closed it, or replaced itself with another program (exec).
    """

    def __init__(self, process: int, pipe: int) -> None:
        self.process = process
        self.has_died = False
        self._pipe = pipe
        self._pidfd = -1
        with suppress(OSError, AttributeError):  # an old kernel, or not Linux
            self._pidfd = os.pidfd_open(process)
        if os.getppid() != process:
            self.has_died = True
        self._polled = select.poll()
        for descriptor in (pipe, self._pidfd):
            if descriptor >= 0:
                self._polled.register(descriptor, select.POLLIN)

    def wait(self, seconds: float) -> bool:
        """Wait up to `seconds` for its death or its message. Return whether it still needs a keeper."""
        end = time.monotonic() + seconds
        while not self.has_died and (left := end - time.monotonic()) > 0:
            step = left if self._pidfd >= 0 else min(left, _PARENT_POLL)
            ready = {descriptor for descriptor, _ in self._polled.poll(step * 1000)}
            self.has_died = self._pidfd in ready or os.getppid() != self.process
            if not self.has_died and self._pipe in ready:
                return self._read_message()
        return not self.has_died

    def state(self) -> str:
        """The state letter of the process in ``/proc``; empty if the system has none."""
        try:
            status = Path(f"/proc/{self.process}/stat").read_text()
        except OSError:
            return ""
        return status[status.rindex(")") + 2]

    def send(self, number: int) -> None:
        """Send the worker a signal, unless it has died."""
        if not self.has_died and os.getppid() == self.process:
            with suppress(OSError):
                os.kill(self.process, number)

    def _read_message(self) -> bool:
        """Read the pipe. Return whether the worker still needs a keeper."""
        if os.read(self._pipe, 1) == DISMISSED:
            return False
        # The pipe closes a moment before the kernel reports a death. Without a death, the worker has left its keeper.
        self._polled.unregister(self._pipe)
        self.wait(_DEATH_TIMEOUT)
        return False


def _ids_and_tokens(jobs: Sequence[KeptJob]) -> list[bytes]:
    return [word for job in jobs for word in (job.job_id, job.token)]


def _log(text: str) -> None:
    """Write a line to the worker's standard error, in the form of its log lines."""
    with suppress(OSError):
        os.write(2, f"{time.strftime('%H:%M:%S')}: {text}\n".encode())


def main(descriptor: int, size: int) -> None:
    """Run the keeper for the table in this memory, with the options that are attached to it."""
    # Signals to a terminal, a process group or a container are for the worker: the keeper ends with the worker.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    table = TableReader(descriptor, size)
    options = KeeperOptions(**json.loads(table.attached()))
    Keeper(options, table, _Worker(options.worker, 0)).run()


def _jobs(number: int) -> str:
    """``1 job``, ``2 jobs``. The keeper does not import `db.text`: it has little memory."""
    return "1 job" if number == 1 else f"{number} jobs"
