"""What can be said of a claimed job before it runs: most often, that it may run."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from worker.engine.delivery import Delivery
from worker.engine.held import HeldJob
from worker.engine.outcome import Kind, Outcome
from worker.errors import JobExpiredError, PayloadError, PayloadTooLargeError, PoisonJobError, UnknownTaskError
from worker.exchange import Claim
from worker.message import Message
from worker.task import Task

_FIRST_DELAY, _LONGEST_DELAY = 1.0, 30.0  # seconds between two looks at a job whose task nobody knows


class Reception:
    """Receives claimed jobs.

    Args:
        tasks: by name.
        max_crashes: claims that were never finished, after which a job is taken to kill its worker.
        unknown_for: seconds from when this worker first met a job of an unknown task until it fails; a deploy that
            brings the task may be under way.
        accept_pickle: whether payloads may be pickles.
    """

    def __init__(
        self, tasks: Mapping[str, Task[..., Any]], *, max_crashes: int, unknown_for: float, accept_pickle: bool
    ) -> None:
        self._tasks = tasks
        self._max_crashes = max_crashes
        self._unknown_for = unknown_for
        self._accept_pickle = accept_pickle
        self._strangers: dict[bytes, float] = {}

    def receive(self, job: HeldJob) -> Outcome | None:
        """Fill in the job's delivery; its outcome if it is not to run at all."""
        claim = job.claim
        if claim.unread:
            return Outcome.failed(_too_large(claim))
        if claim.payload is None:
            return Outcome(Kind.EXPIRED, error=JobExpiredError("job expired: it waited longer than it may"))
        try:
            message = Message.decode(job.job_id, claim.payload, accept_pickle=self._accept_pickle)
        except PayloadError as error:
            return Outcome.failed(error)
        job.delivery = Delivery(
            message,
            job.queue,
            tries=claim.tries,
            crashes=claim.crashes,
            started_at=job.started_at,
            score=_milliseconds(claim),
        )
        if job.asked_to_abort(claim.abort_at):
            return Outcome(Kind.ABORTED, error=asyncio.CancelledError())
        if claim.crashes >= self._max_crashes:
            return Outcome.failed(
                PoisonJobError(f"its worker died {claim.crashes} times while it ran; WORKER_MAX_CRASHES allows no more")
            )
        if message.task not in self._tasks:
            return self._stranger(claim.raw_id, message)
        return None

    def _stranger(self, raw_id: bytes, message: Message) -> Outcome:
        now = time.monotonic()
        met = self._strangers.setdefault(raw_id, now)
        if now - met >= self._unknown_for:
            del self._strangers[raw_id]
            return Outcome.failed(
                UnknownTaskError(
                    f"no task {message.task!r} in this worker's registry for {self._unknown_for:g} s: list it in TASKS"
                )
            )
        self._forget_old_strangers(now)
        delay = min(max(now - met, _FIRST_DELAY), _LONGEST_DELAY, self._unknown_for)
        return Outcome(Kind.POSTPONED, error=UnknownTaskError("no such task here"), delay=delay)

    def _forget_old_strangers(self, now: float) -> None:
        """Forget those whom another worker has taken care of."""
        while self._strangers:
            raw_id, met = next(iter(self._strangers.items()))  # the one met first
            if now - met <= 2 * self._unknown_for + 60:
                return
            del self._strangers[raw_id]


def _too_large(claim: Claim) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"its payload has {claim.unread} bytes, and a worker reads 8 times WORKER_MAX_PAYLOAD at most: store the "
        "arguments and enqueue their key, or raise it"
    )


def _milliseconds(claim: Claim) -> int:
    try:
        return int(float(claim.score))
    except (ValueError, OverflowError):  # inf: somebody's joke
        return 0
