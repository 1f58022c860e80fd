"""``why``: the one reason why a job does not run, or how it ended.

1. Redis is asked first: a job that waits or runs there has no other reason than the one that is found there.
2. Then the ledger: a row that is pending is not published yet, and any other row tells how the job ended.
3. Then a kept result, and the latest ended jobs.
"""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from db.errors import DbError
from worker.admin.deployment import Deployment
from worker.admin.reason import Reason, ReasonKind
from worker.admin.waiting import WaitingJob, clock, command, why_waiting
from worker.broker.job_inspector import JobInspection, JobInspector
from worker.broker.records import ABORTED, to_ms
from worker.context import from_milliseconds
from worker.errors import JobExpiredError, JobFailed, LedgerAwayError, PayloadError
from worker.exception_codec import message_of
from worker.ledger import State
from worker.message import Message, deserialize
from worker.metrics.reader import MetricsReader
from worker.metrics.records import EndedJob, WorkerReport

__all__ = ["Reason", "ReasonKind", "why"]

_FRESH = 2.5  # seconds: a worker whose record is younger is taken to be alive
_LOOK_AGAIN = 0.15  # seconds
_LOOKS = 12  # a live worker renews its leases every half second
_RENEWED = 50  # milliseconds by which a lease must have grown
_TURNS = 5  # while the job changes under the eyes

_ENDS: Mapping[State, tuple[ReasonKind, str]] = {
    State.DONE: (ReasonKind.DONE, "it is done"),
    State.FAILED: (ReasonKind.FAILED, "it failed"),
    State.ABORTED: (ReasonKind.ABORTED, "it was aborted"),
    State.DISCARDED: (ReasonKind.DISCARDED, "it was discarded by hand"),
    State.EXPIRED: (ReasonKind.EXPIRED, "it was not started before it expired"),
}
_OUTCOMES: Mapping[str, State] = {
    "completed": State.DONE,
    "failed": State.FAILED,
    "aborted": State.ABORTED,
    "expired": State.EXPIRED,
}


async def why(
    job_id: str,
    *,
    queue: str | None = None,
    enqueued_at: datetime | None = None,
    deployment: Deployment | None = None,
) -> Reason:
    """Find the one reason why a job does not run, or how it ended.

    Args:
        queue: the queue of the job (default: searched for among those of `deployment`, and in the ledger).
        enqueued_at: the enqueue time of the job (default: the last job of this id).
        deployment: where to look (default: the servers of this process).

    Raises:
        RedisError, OSError: Redis does not answer.
        LedgerAwayError: Redis does not have the job, and the ledger's database does not answer.
    """
    search = _Search(deployment or Deployment.of_process(), job_id, None if enqueued_at is None else to_ms(enqueued_at))
    return await search.reason([queue] if queue is not None else [])


class _Search:
    """The search for one job.

    Args:
        enqueued_at: milliseconds since the epoch.
    """

    def __init__(self, deployment: Deployment, job_id: str, enqueued_at: int | None) -> None:
        self._deployment = deployment
        self._job_id = job_id
        self._enqueued_at = enqueued_at
        self._inspector = JobInspector(deployment.broker.connections)
        self._reader = MetricsReader(deployment.broker)

    async def reason(self, queues: Sequence[str]) -> Reason:
        searched = list(queues or self._deployment.queues)
        for name in searched:
            if (found := await self._in_queue(name)) is not None:
                return found
        row = await self._row()
        if row is not None and row["queue"] not in searched:
            searched.append(row["queue"])
            if (found := await self._in_queue(row["queue"])) is not None:
                return found
        if row is not None:
            return await self._of_row(row)
        for name in searched:
            if (found := await self._ended(name)) is not None:
                return found
        return await self._unknown(searched)

    async def _unknown(self, searched: Sequence[str]) -> Reason:
        evidence = {"queues": searched, "ledger": self._deployment.ledger is not None}
        if (message := await self._waiting_elsewhere(searched)) is not None:
            return Reason(
                ReasonKind.UNKNOWN,
                f"it is in another queue than {', '.join(searched)}: Redis has its arguments",
                f"name its queue: {command('jobs why', self._job_id)} --queue NAME, or add it to WORKER_QUEUES here",
                self._job_id,
                task=message.task,
                enqueued_at=from_milliseconds(message.enqueued_at),
                evidence=evidence,
            )
        return Reason(
            ReasonKind.UNKNOWN,
            "neither Redis nor the ledger has a job of this id",
            "check the id and the queue: the transaction that it was enqueued in may not be committed, its result may "
            "not be kept any more, or WORKER_QUEUES of this process may not have its queue",
            self._job_id,
            evidence=evidence,
        )

    async def _waiting_elsewhere(self, searched: Sequence[str]) -> Message | None:
        """The message of a job in a queue that was not searched. Queues share the keys of their payloads."""
        for name in searched[:1]:
            message = self._message(await self._inspector.inspect(name, self._job_id))
            if message is not None and self._enqueued_at in (None, message.enqueued_at):
                return message
        return None

    async def _in_queue(self, queue: str) -> Reason | None:
        """The reason of a job that waits or runs in this queue. None if it is not there."""
        for _ in range(_TURNS):
            seen = await self._inspector.inspect(queue, self._job_id)
            if seen.due is None:
                return None
            if seen.payload is None:
                seen = seen._replace(payload=await self._payload_in_ledger())
            message = self._message(seen)
            if message is not None and self._enqueued_at not in (None, message.enqueued_at):
                return None
            workers = await self._workers(queue)
            job = WaitingJob(self._job_id, queue, seen, message, workers)
            if seen.lease is None:
                return why_waiting(job)
            if (reason := await self._held(job)) is not None:
                return reason
        return job.reason(
            ReasonKind.RUNNING, "workers take it and put it back in quick succession", "look at their logs"
        )

    async def _held(self, job: WaitingJob) -> Reason | None:
        """The reason of a job that a worker holds. None if that has changed meanwhile."""
        if job.seen.is_held_by_stock_worker:
            return job.reason(ReasonKind.RUNNING, "a stock arq worker runs it")
        for worker in job.workers:
            for running in worker.jobs:
                if running.id == self._job_id and worker.age < _FRESH:
                    return job.reason(
                        ReasonKind.RUNNING,
                        f"worker {worker.id} runs it since {clock(running.since)}, attempt {running.attempt}",
                        worker=worker.id,
                        process=worker.process,
                        host=worker.host,
                        since=running.since,
                        attempt=running.attempt,
                    )
        return await self._of_lease(job)

    async def _of_lease(self, job: WaitingJob) -> Reason | None:
        """Whether the job's lease is renewed: the worker that holds it has said nothing of it yet, or has died."""
        first = job.seen
        for _ in range(_LOOKS):
            await asyncio.sleep(_LOOK_AGAIN)
            seen = await self._inspector.inspect(job.queue, self._job_id)
            if seen.lease != first.lease:
                return None
            if seen.lease_left < 0 or seen.lease_left > first.lease_left - (seen.now - first.now) + _RENEWED:
                return job.reason(ReasonKind.RUNNING, "a worker runs it, and renews its lease")
        ends = from_milliseconds(seen.now + seen.lease_left)
        holders = [worker for worker in job.workers for each in worker.jobs if each.id == self._job_id]
        name = f"worker {holders[0].id}" if holders else "its worker"
        return job.reason(
            ReasonKind.WORKER_DIED,
            f"{name} does not renew its lease, so it has died or stands still; the lease ends at {clock(ends)}",
            "wait: another worker then runs it, which counts as a crash",
            lease_ends=ends,
            worker=holders[0].id if holders else None,
            crashes=first.crashes - 1,
        )

    async def _workers(self, queue: str) -> list[WorkerReport]:
        """The workers of a queue, with the jobs of all their queues."""
        workers = await self._reader.workers([queue])
        queues = dict.fromkeys(name for worker in workers for name in worker.queues)
        if set(queues) <= {queue}:
            return workers
        processes = {worker.process for worker in workers}
        return [worker for worker in await self._reader.workers(queues) if worker.process in processes]

    async def _row(self) -> Mapping[str, Any] | None:
        if self._deployment.ledger is None:
            return None
        try:
            return await self._deployment.ledger.latest(self._job_id, self._enqueued_at)
        except (SQLAlchemyError, DbError, OSError) as error:
            raise LedgerAwayError(f"Redis does not have the job, and the ledger does not answer: {error}") from error

    async def _payload_in_ledger(self) -> bytes | None:
        """The payload of a pending row, from which workers restore a lost payload."""
        row = await self._row()
        payload: bytes | None = None if row is None or row["state"] != State.PENDING else row["payload"]
        return payload

    async def _of_row(self, row: Mapping[str, Any]) -> Reason:
        state = State(row["state"])
        if state is State.PENDING:
            return await self._not_published(row)
        error = row["error"] or ""
        return self._end(
            state,
            row["queue"],
            row["task"],
            row["enqueued_at"],
            row["finished_at"],
            error=error,
            tries=row["tries"],
            in_ledger=True,
        )

    async def _not_published(self, row: Mapping[str, Any]) -> Reason:
        workers = await self._reader.workers([*self._deployment.queues, row["queue"]])
        due = row["due"] if row["due"] is not None and row["due"] > row["now"] else None
        when = "" if due is None else f"; it is due at {clock(from_milliseconds(due))}"
        next_step = "wait until it is due" if due is not None else "wait a few seconds"
        next_step += ": a worker publishes it"
        if not any(not worker.is_silent for worker in workers):
            next_step = "start a worker: its relay publishes pending rows"
        next_step += f"; or run it now: {command('jobs run-now', self._job_id)}"
        return Reason(
            ReasonKind.NOT_PUBLISHED,
            f"its row is committed, and the job is not in Redis yet{when}",
            next_step,
            self._job_id,
            row["queue"],
            row["task"],
            from_milliseconds(row["enqueued_at"]),
            {
                "due": None if row["due"] is None else from_milliseconds(row["due"]),
                "checked_after": None if row["check_at"] is None else from_milliseconds(row["check_at"]),
                "workers": len(workers),
            },
        )

    async def _ended(self, queue: str) -> Reason | None:
        """How a job without a row ended: from its kept result, or from the latest ended jobs."""
        seen = await self._inspector.inspect(queue, self._job_id)
        if seen.result is not None and (found := self._of_result(queue, seen.result)) is not None:
            return found
        for ended in await self._reader.latest(queue):
            if ended.id == self._job_id and self._enqueued_at in (None, ended.enqueued_at):
                return self._of_ended(queue, ended)
        return None

    def _of_result(self, queue: str, raw: bytes) -> Reason | None:
        try:
            result = deserialize(raw)
        except PayloadError:
            return None
        if self._enqueued_at not in (None, result["et"]) or "s" not in result:
            return None
        state, error = _state_of(result, raw), result["r"]
        error = message_of(error) if not result["s"] and isinstance(error, BaseException) else ""
        return self._end(state, queue, result["f"], result["et"], result["ft"], error=error, tries=result["t"])

    def _of_ended(self, queue: str, ended: EndedJob) -> Reason:
        state = _OUTCOMES.get(ended.outcome, State.DONE)
        return self._end(
            state, queue, ended.task, ended.enqueued_at, ended.finished_at, error=ended.error, tries=ended.attempt
        )

    def _end(
        self,
        state: State,
        queue: str,
        task: str,
        enqueued_at: int,
        finished_at: int | None,
        *,
        error: str,
        tries: int,
        in_ledger: bool = False,
    ) -> Reason:
        kind, sentence = _ENDS[state]
        at = None if finished_at is None else from_milliseconds(finished_at)
        sentence += "" if at is None else f", at {clock(at)}"
        sentence += f": {error}" if error and state is State.FAILED else ""
        retry = command("jobs retry", self._job_id) if in_ledger else "enqueue it again: it has no job row"
        return Reason(
            kind,
            sentence,
            retry if state is State.FAILED else "",
            self._job_id,
            queue,
            task,
            from_milliseconds(enqueued_at),
            {"finished_at": at, "tries": tries} | ({"error": error} if error else {}),
        )

    def _message(self, seen: JobInspection) -> Message | None:
        try:
            return None if seen.payload is None else Message.decode(self._job_id, seen.payload)
        except PayloadError:
            return None


def _state_of(result: Mapping[str, Any], raw: bytes) -> State:
    """The state that a job row of this result would have."""
    if result["s"]:
        return State.DONE
    if raw.startswith(ABORTED):
        return State.ABORTED
    error = result["r"]
    has_expired = isinstance(error, JobFailed) and error.type.rpartition(".")[2] == JobExpiredError.__name__
    return State.EXPIRED if has_expired else State.FAILED
