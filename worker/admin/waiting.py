"""Why a job that is in Redis does not run: one function for each reason, in the order in which they are asked.

1. What the job itself waits for comes first: an abort, its due time.
2. Then a pause of its queue, and the crashes of workers that ran it: suspects run one at a time.
3. Then what else keeps its queue from running: no worker, or no worker that knows its task.
4. Then its place: all slots may be taken, other jobs may come first.
"""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from db.text.plural import plural
from worker.admin.reason import Reason, ReasonKind
from worker.broker.job_inspector import JobInspection
from worker.context import from_milliseconds
from worker.message import Message
from worker.metrics.records import RunningJob, WorkerReport, WorkerState

SUSPECT_CRASHES = 2  # SUSPECT_CRASHES of scripts/claim.lua
_MOST_SHOWN = 20  # running jobs in the evidence

_CLAIMING = (WorkerState.STARTING, WorkerState.WORKING)


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """A job in a queue, and what is known of the queue."""

    job_id: str
    queue: str
    seen: JobInspection
    message: Message | None
    """None if its payload is lost or cannot be read."""
    workers: Sequence[WorkerReport]
    """The workers of the queue that have a record. Their jobs are also those of their other queues."""

    def reason(self, kind: ReasonKind, sentence: str, next_step: str = "", **evidence: Any) -> Reason:
        message = self.message
        return Reason(
            kind,
            sentence,
            next_step,
            self.job_id,
            self.queue,
            None if message is None else message.task,
            None if message is None else from_milliseconds(message.enqueued_at),
            {name: value for name, value in evidence.items() if value is not None},
        )

    @property
    def due(self) -> datetime:
        assert self.seen.due is not None  # noqa: S101 - it is in the queue
        return from_milliseconds(round(self.seen.due))

    @property
    def seconds_until_due(self) -> float:
        return ((self.seen.due or 0) - self.seen.now) / 1000

    @property
    def wait_or_run_now(self) -> str:
        """The next step of a job that is due later."""
        return f"wait, or run it now: {command('jobs run-now', self.job_id)} --queue {shlex.quote(self.queue)}"

    @property
    def claiming(self) -> list[WorkerReport]:
        """The workers that claim jobs when they have free slots."""
        return [worker for worker in self.workers if worker.state in _CLAIMING]

    @property
    def is_unserved(self) -> bool:
        """Whether no worker would claim it. A stock worker has no record of ours."""
        return not self.claiming and (bool(self.workers) or not self.seen.is_served)

    @property
    def running(self) -> list[tuple[RunningJob, WorkerReport]]:
        """The running jobs of these workers, the longest first."""
        found = [(job, worker) for worker in self.claiming for job in worker.jobs]
        return sorted(found, key=lambda each: each[0].since)


def aborted(job: WaitingJob) -> Reason | None:
    at = job.seen.abort_at
    if at is None or not job.seen.is_due or (job.message is not None and at < job.message.enqueued_at):
        return None
    sentence = "an abort was requested: the job ends without running once a worker claims it"
    return job.reason(ReasonKind.ABORTED, sentence, "" if job.claiming else f"start a worker of {job.queue}")


def expired(job: WaitingJob) -> Reason | None:
    if job.seen.payload is not None:
        return None
    sentence = "its arguments have expired: it ends as expired once a worker claims it"
    return job.reason(ReasonKind.EXPIRED, sentence, "enqueue it again, and allow it more time: using(expires=...)")


def unknown_task_put_back(job: WaitingJob) -> Reason | None:
    note = job.seen.put_back
    if job.seen.is_due or note is None or note.error != "UnknownTaskError":
        return None
    return unknown_task(job)


def put_back(job: WaitingJob) -> Reason | None:
    if job.seen.is_due or not (job.seen.put_back or job.seen.tries):
        return None
    note, tries = job.seen.put_back, job.seen.tries
    at = "" if note is None else f" by worker {note.worker}, {note.error}: {note.why}"
    counted = f", after {plural(tries, 'failed try', 'failed tries')}" if tries else ""
    return job.reason(
        ReasonKind.PUT_BACK,
        f"it was put back until {clock(job.due)}{counted}{at}",
        job.wait_or_run_now,
        due=job.due,
        failed_tries=tries,
        worker=note and note.worker,
        error=note and f"{note.error}: {note.why}",
        put_back_at=None if job.seen.put_back_at is None else from_milliseconds(job.seen.put_back_at),
    )


def suspect_put_off(job: WaitingJob) -> Reason | None:
    """A worker that runs another suspect moves this one by half a second."""
    return None if job.seen.is_due else suspect(job)


def scheduled(job: WaitingJob) -> Reason | None:
    if job.seen.is_due:
        return None
    sentence = f"it is scheduled for {clock(job.due)}, in {job.seconds_until_due:,.0f} s"
    return job.reason(ReasonKind.SCHEDULED, sentence, job.wait_or_run_now, due=job.due)


def paused(job: WaitingJob) -> Reason | None:
    pause = job.seen.pause
    if pause is None or not job.seen.is_held_back:
        return None
    since, until = from_milliseconds(pause.since), None if pause.until is None else from_milliseconds(pause.until)
    verb = "paused" if pause.due_before is None else "drained"
    sentence = f"its queue {job.queue} is {verb} since {clock(since)}"
    sentence += f", by {pause.actor}" if pause.actor else ""
    sentence += f", until {clock(until)}" if until else ""
    return job.reason(
        ReasonKind.PAUSED, sentence, command("queues resume", job.queue), since=since, actor=pause.actor, until=until
    )


def no_worker(job: WaitingJob) -> Reason | None:
    if not job.is_unserved:
        return None
    if not job.workers:
        sentence = f"no worker serves its queue {job.queue}"
        return job.reason(ReasonKind.NO_WORKER, sentence, f"start one: {start(job.queue)}")
    states = ", ".join(f"{worker.id} is {worker.state}{worker.why and f' ({worker.why})'}" for worker in job.workers)
    are_quiet = any(worker.state is WorkerState.QUIET for worker in job.workers)
    return job.reason(
        ReasonKind.NO_WORKER,
        f"no worker of its queue {job.queue} claims jobs: {states}",
        "resume a worker, or start another one" if are_quiet else "look at its log, or start another worker",
        workers={worker.id: worker.state.value for worker in job.workers},
    )


def unknown_task(job: WaitingJob) -> Reason | None:
    if job.message is None or not job.seen.tasks or job.message.task in job.seen.tasks:
        return None
    task, note = job.message.task, job.seen.put_back
    return job.reason(
        ReasonKind.UNKNOWN_TASK,
        f"no worker of its queue {job.queue} knows the task {task}",
        f"start a worker that lists {task} in TASKS; the job fails after WORKER_UNKNOWN_FOR seconds",
        known_tasks=sorted(job.seen.tasks),
        due=job.due,
        worker=note and note.worker,
    )


def suspect(job: WaitingJob) -> Reason | None:
    """Asked before `no_worker`, as a job that kills each worker leaves its queue without one."""
    crashes = job.seen.crashes
    if crashes < SUSPECT_CRASHES:
        return None
    sentence = f"{crashes:,} workers have died while they ran it"
    if job.is_unserved:
        sentence += f", and no worker serves its queue {job.queue} now"
    else:
        sentence += ": a worker runs one such job at a time"
    abort = f"{command('jobs abort', job.job_id)} --queue {shlex.quote(job.queue)}"
    return job.reason(
        ReasonKind.SUSPECT,
        sentence,
        f"look at the workers' logs, or abort it: {abort}; it fails after WORKER_MAX_CRASHES crashes",
        crashes=crashes,
    )


def slots_taken(job: WaitingJob) -> Reason | None:
    slots, busy = (sum(getattr(worker, name) for worker in job.claiming) for name in ("slots", "busy"))
    if not slots or busy < slots or job.seen.before >= slots:  # with a backlog, its place says more
        return None
    shown = job.running[:_MOST_SHOWN]
    all_slots = "the only slot" if slots == 1 else f"all {slots:,} slots"
    sentence = f"{all_slots} of the workers of its queue {job.queue} {'is' if slots == 1 else 'are'} taken"
    if shown:
        longest, worker = shown[0]
        sentence += f", the longest by job {longest.id} ({longest.task}) on {worker.id} since {clock(longest.since)}"
    return job.reason(
        ReasonKind.SLOTS_TAKEN,
        sentence,
        "wait, start more workers, or raise WORKER_CONCURRENCY",
        slots=slots,
        before=job.seen.before,
        jobs=[
            {"id": each.id, "task": each.task, "queue": each.queue, "since": each.since, "worker": worker.id}
            for each, worker in shown
        ],
    )


def behind(job: WaitingJob) -> Reason:
    before, overdue = job.seen.before, max(-job.seconds_until_due, 0.0)
    comes = "1 due job comes" if before == 1 else f"{before:,} due jobs come"
    place = f"{comes} before it in its queue" if before else "it is the next job of its queue"
    return job.reason(
        ReasonKind.BEHIND,
        f"{place} {job.queue}",
        "wait, or start more workers" if before else "wait",
        before=before,
        due=job.due,
        overdue=round(overdue, 3),
        crashes=job.seen.crashes or None,
    )


_RULES: tuple[Callable[[WaitingJob], Reason | None], ...] = (
    aborted,
    expired,
    unknown_task_put_back,
    put_back,
    suspect_put_off,
    scheduled,
    paused,
    suspect,
    no_worker,
    unknown_task,
    slots_taken,
)


def why_waiting(job: WaitingJob) -> Reason:
    """The reason why a job that no worker holds does not run."""
    for rule in _RULES:
        if (reason := rule(job)) is not None:
            return reason
    return behind(job)


def command(words: str, argument: str) -> str:
    """A command to type."""
    return f"tandem {words} {shlex.quote(argument)}"


def start(queue: str) -> str:
    """The command that starts a worker of this queue alone."""
    return f"WORKER_QUEUES={shlex.quote(queue)} python -m worker run"


def clock(moment: datetime) -> str:
    """A time for a sentence."""
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
