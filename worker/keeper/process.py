"""``python -c ...``: the keeper's own process.

1. While its worker keeps its leases, it only looks at when that was, a few times a lease.
2. Where the heartbeat is silent although the worker runs, something keeps the interpreter: a regular expression that
   backtracks, a C call. Then the keeper renews the leases, of each job until its limit. It never takes one again.
3. A worker that is stopped (SIGSTOP, a frozen container) does not run, and its leases end, so that others can go on.
4. A worker that is silent for longer than any of its jobs may take can end neither by itself nor by its heartbeat: the
   keeper has it say where it is, and kills it.
5. When the worker has died, its jobs are given back at once. The system tells of the death, however it comes about.
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

_JOBS = 500  # a round trip
_OURS = 1  # what the scripts reply of a job that the worker held
_LONGEST_CALL = 5.0  # seconds
_AGAIN = 0.2  # seconds between two tries to give jobs back
_ORPHANED = 0.1  # seconds between two looks at who the parent is, where the system tells of no death
_DYING = 5.0  # seconds that a process may take to die, from when its pipe has closed
_LAST_WORDS = 1.0  # seconds that a worker has to say where it is


class KeeperOptions(NamedTuple):
    """The options that a keeper gets when it starts."""

    worker: int
    """The worker's process."""
    lease: float
    silence: float
    """Seconds that a worker may be silent, if none of its jobs may take longer."""
    where: int
    """The signal that has the worker print where it is; 0: there is none."""
    servers: dict[str, Any]
    queues: list[list[str]]
    """Name, prefix of its keys, and the channel that wakes idle workers, of each."""
    renew: str
    release: str
    """The scripts."""


class Keeper:
    """Keeps one worker's leases."""

    def __init__(self, terms: KeeperOptions, table: TableReader, worker: "_Worker") -> None:
        self._terms = terms
        self._table = table
        self._worker = worker
        self._redis = Redis(terms.servers, min(terms.lease / 4, _LONGEST_CALL))
        self._interval = terms.lease / 8
        self._seen_at = self._renewed_at = time.monotonic()
        self._alive_at = 0.0
        self._silent_for = 0.0
        self._is_keeping = False

    def run(self) -> None:
        """Keep, until the worker dies or says that it needs no keeper any more."""
        self._table.tell(os.getpid())
        while self._worker.lives_on(self._interval):
            self._look()
        if self._worker.has_died:
            self._give_back()

    def _look(self) -> None:
        now = time.monotonic()
        silent_since, self._seen_at = self._seen_at, now
        if self._table.alive_at != self._alive_at:
            self._alive_at, self._silent_for = self._table.alive_at, 0.0
        if now - self._table.kept_since < self._terms.lease * 3 / 8:
            self._is_keeping = False
            return
        state = self._worker.state()
        if state in ("T", "t"):
            return
        # While this process was frozen, the worker may have been frozen or not.
        self._silent_for += min(now - silent_since, 2 * self._interval)
        jobs = self._table.jobs()
        if state and self._is_stuck(jobs, now):
            self._end_worker(jobs)
        elif now - self._renewed_at >= self._terms.lease / 4:
            self._renewed_at = now
            self._renew([job for job in jobs if now < job.until])

    def _is_stuck(self, jobs: Sequence[KeptJob], now: float) -> bool:
        """Whether it is silent for longer than any job that has begun may take."""
        return self._silent_for > self._terms.silence and all(now > job.until for job in jobs if job.has_begun)

    def _end_worker(self, jobs: Sequence[KeptJob]) -> None:
        begun = ", ".join(ascii(job.job_id.decode(errors="backslashreplace")) for job in jobs if job.has_begun)
        _say(
            f"worker {self._worker.process} has run no Python but what keeps the interpreter for "
            f"{self._silent_for:.0f} s, longer than any of its jobs may take: killing it; this is where it is"
            f" (jobs that had begun: {begun or 'none'}):"
        )
        if self._terms.where:
            self._worker.send(self._terms.where)
            self._worker.lives_on(_LAST_WORDS)
        self._worker.send(signal.SIGKILL)

    def _renew(self, jobs: Sequence[KeptJob]) -> None:
        def renew(queue: list[str], some: Sequence[KeptJob]) -> int:
            name, prefix, _wake = queue
            lease = round(self._terms.lease * 1000)
            states: list[int] = self._redis.run(self._terms.renew, name, [prefix, lease, *_ids_and_tokens(some)])[::2]
            return states.count(_OURS)

        renewed, _ = self._of_each_queue(jobs, renew)
        if renewed and not self._is_keeping:
            self._is_keeping = True
            silent_for = time.monotonic() - self._table.kept_since
            is_silent = time.monotonic() - self._table.alive_at > self._terms.lease * 3 / 8
            why = "as if something kept its interpreter" if is_silent else "although it runs: Redis may have been slow"
            _say(
                f"worker {self._worker.process} has renewed no lease for {silent_for:.1f} s, {why}: "
                f"the keeper renews {renewed} of {len(jobs)} meanwhile"
            )

    def _give_back(self) -> None:
        """Try for as long as a lease lasts: after that Redis has given back what is left."""

        def release(queue: list[str], some: Sequence[KeptJob]) -> int:
            name, prefix, wake = queue
            states: list[int] = self._redis.run(self._terms.release, name, [prefix, wake, *_ids_and_tokens(some)])
            return states.count(_OURS)

        jobs = self._table.jobs()
        given_back, left = self._of_each_queue(jobs, release)
        end = time.monotonic() + self._terms.lease
        while left and time.monotonic() < end:
            time.sleep(_AGAIN)
            more, left = self._of_each_queue(left, release)
            given_back += more
        _say(f"worker {self._worker.process} has died: {given_back} of its {len(jobs)} jobs are given back")

    def _of_each_queue(
        self, jobs: Sequence[KeptJob], do: Callable[[list[str], Sequence[KeptJob]], int]
    ) -> tuple[int, list[KeptJob]]:
        """Do it with the jobs of each queue, some at a time; how many were ours, and those with which it failed."""
        by_queue: defaultdict[int, list[KeptJob]] = defaultdict(list)
        for job in jobs:
            by_queue[job.queue].append(job)
        done, failed = 0, list[KeptJob]()
        for queue, its in by_queue.items():
            for first in range(0, len(its), _JOBS):
                some = its[first : first + _JOBS]
                try:
                    done += do(self._terms.queues[queue], some)
                except (OSError, RefusedError):
                    failed += some
        return done, failed


class _Worker:
    """The worker, seen from outside.

    The system tells of its death through a descriptor (Linux), or else by giving this process another parent. That
    their pipe closes is no proof: the worker may have closed it, or run another program in its place.
    """

    def __init__(self, process: int, pipe: int) -> None:
        self.process = process
        self.has_died = False
        self._pipe = pipe
        self._death = -1
        with suppress(OSError, AttributeError):  # too old a kernel, or no Linux
            self._death = os.pidfd_open(process)
        if os.getppid() != process:
            self.has_died = True
        self._polled = select.poll()
        for descriptor in (pipe, self._death):
            if descriptor >= 0:
                self._polled.register(descriptor, select.POLLIN)

    def lives_on(self, seconds: float) -> bool:
        """Wait for its death or its word, at most so long; whether it still needs a keeper."""
        end = time.monotonic() + seconds
        while not self.has_died and (left := end - time.monotonic()) > 0:
            step = left if self._death >= 0 else min(left, _ORPHANED)
            told = {descriptor for descriptor, _ in self._polled.poll(step * 1000)}
            self.has_died = self._death in told or os.getppid() != self.process
            if not self.has_died and self._pipe in told:
                return self._speaks()
        return not self.has_died

    def state(self) -> str:
        """Its state as the system tells it, one letter; empty where it does not."""
        try:
            status = Path(f"/proc/{self.process}/stat").read_text()
        except OSError:
            return ""
        return status[status.rindex(")") + 2]

    def send(self, number: int) -> None:
        """Send it a signal, unless it has died."""
        if not self.has_died and os.getppid() == self.process:
            with suppress(OSError):
                os.kill(self.process, number)

    def _speaks(self) -> bool:
        """Whether it still needs a keeper, now that the pipe has something to say."""
        if os.read(self._pipe, 1) == DISMISSED:
            return False
        # The pipe closes a moment before the system tells of a death; else the worker has left its keeper.
        self._polled.unregister(self._pipe)
        self.lives_on(_DYING)
        return False


def _ids_and_tokens(jobs: Sequence[KeptJob]) -> list[bytes]:
    return [word for job in jobs for word in (job.job_id, job.token)]


def _say(text: str) -> None:
    """To the worker's standard error, as its log lines are."""
    with suppress(OSError):
        os.write(2, f"{time.strftime('%H:%M:%S')}: {text}\n".encode())


def main(descriptor: int, size: int) -> None:
    """Keep the table in this memory, by the terms that are attached to it."""
    # Signals of a terminal, or to a whole group or container, are the worker's. The keeper ends with it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    table = TableReader(descriptor, size)
    terms = KeeperOptions(**json.loads(table.attached()))
    Keeper(terms, table, _Worker(terms.worker, 0)).run()
