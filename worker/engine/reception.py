"""What can be said of a claimed job before it runs: most often, that it may run."""

import asyncio
from collections.abc import Mapping
from typing import Any

from worker.engine.delivery import Delivery
from worker.engine.held import HeldJob
from worker.engine.outcome import Kind, Outcome
from worker.errors import JobExpiredError, PayloadError, PayloadTooLargeError, PoisonJobError, UnknownTaskError
from worker.exchange import Claim
from worker.message import Message
from worker.task import Task


class Reception:
    """Receives claimed jobs.

    Args:
        tasks: by name.
        max_crashes: claims that were never finished, after which a job is taken to kill its worker.
        accept_pickle: whether payloads may be pickles.
    """

    def __init__(self, tasks: Mapping[str, Task[..., Any]], *, max_crashes: int, accept_pickle: bool) -> None:
        self._tasks = tasks
        self._max_crashes = max_crashes
        self._accept_pickle = accept_pickle

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
            return Outcome(Kind.POSTPONED, error=UnknownTaskError.of(message.task))
        return None


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
