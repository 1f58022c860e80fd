"""``Engine``: claims jobs, runs them, reports what became of them, and keeps their leases meanwhile.

1. The claimer fills free slots; each claimed job is one asyncio task, which the executor takes from claim to outcome.
2. The settler and the finisher write outcomes, the ledger's first; the heartbeat's thread keeps the leases of all that
   is held.
3. The scheduler queues what the clock says, the relay what Redis has lost; the pruner forgets what is long over. Health
   is written down every second.
4. Each loop is supervised. Draining stops claiming first, lets jobs finish for a grace time, then interrupts the rest.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

from redis.exceptions import RedisError

from db.threads import in_thread
from db.transient import transient
from worker.config import Config
from worker.ending import end
from worker.engine.announcer import Announcer
from worker.engine.calling import AfterJob
from worker.engine.claimer import Claimer
from worker.engine.delivery import Delivery
from worker.engine.executor import Executor
from worker.engine.finisher import Finisher
from worker.engine.health import UNWELL_WITHIN, Health, Vitals
from worker.engine.heartbeat import STUCK, Heartbeat
from worker.engine.held import HeldJob, HeldJobs, Phase
from worker.engine.outcome import Kind, Outcome
from worker.engine.patience import LONGEST_PAUSE
from worker.engine.pruner import Pruner
from worker.engine.recall import pending_row, recall
from worker.engine.reception import Reception
from worker.engine.relay import Relay
from worker.engine.report import Counts, JobLog, milliseconds, settlement
from worker.engine.scheduler import Scheduler
from worker.engine.settler import Settler
from worker.engine.supervision import EngineError, supervise
from worker.engine.unknown import UnknownJobs
from worker.exchange import Claim, Settlement, now_ms
from worker.keeper.keeper import Keeper
from worker.keeper.table import LeaseTable, Place
from worker.ledger import Ledger
from worker.message import Message
from worker.queue import Queue
from worker.renewal import Renewal
from worker.task import Task

logger = logging.getLogger("worker")

_POSTPONED = Kind.POSTPONED
_SETTLING = 10.0  # seconds that the last outcomes have to reach Redis; after that, leases bring their jobs back
_ROOM = 4  # batches a slot that the keeper is told of: outcomes on their way are held, too
_LOOK = 0.5  # seconds between two looks at whether all slots are held for good
_LATER = 1.0  # seconds until a job is looked at again that the database must be asked about
_UNWINDING = 10.0  # seconds that interrupted jobs have to roll back; after that, likewise


class SlotsHeldError(EngineError):
    """No slot of this worker will ever be free again."""

    exit_code = STUCK


class _Loop(Protocol):
    async def run(self) -> None: ...


class Engine:
    """One worker.

    Args:
        tasks: by name.
        executor: runs their jobs.
        ask_database: asks the default database for an answer.
        ledger: the job rows (default: none are kept).
        after_job: told of each job that has run, once its outcome is on its way.
    """

    def __init__(
        self,
        config: Config,
        tasks: Mapping[str, Task[..., Any]],
        queue: Queue,
        executor: Executor,
        *,
        ask_database: Callable[[], Awaitable[None]],
        ledger: Ledger | None = None,
        after_job: AfterJob | None = None,
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._after_job = after_job
        self._tasks = tasks
        self._queue = queue
        self._executor = executor
        self._names = config.queue_names
        self._held = HeldJobs()
        self._counts = Counts()
        self._log = JobLog(config.log_jobs)
        self._reception = Reception(
            tasks,
            max_crashes=config.max_crashes,
            accept_pickle=config.accept_pickle,
        )
        self._unknown = UnknownJobs(queue, unknown_for=config.unknown_for)
        self._announcer = Announcer(queue, self._names, list(tasks))
        self._table = LeaseTable(_ROOM * config.concurrency)
        self._claimer = Claimer(
            queue,
            self._names,
            slots=config.concurrency,
            lease=config.lease,
            start=self._start,
            table=self._table,
            allowance=self._longest_allowance,
            keeps_leases=lambda: not self._held or self._heartbeat.is_fresh,
        )
        self._finisher = Finisher(queue, self._held, self._settlement)
        self._settler = Settler(ledger, self._finisher)
        lease, silence = config.lease, config.lease + config.grace
        self._heartbeat = Heartbeat(
            self._held,
            lambda name: Renewal(queue.url, name, round(lease * 1000)),
            self._names,
            self._table,
            Keeper(self._table, queue.url, self._names, lease=lease, silence=silence),
            lease=lease,
            silence=silence,
        )
        default_queue = config.queue if config.queue in self._names else self._names[0]
        self._scheduler = Scheduler(queue, tasks, default_queue, ledger)
        self._health = Health(queue, self._names, config.id, vitals=self._vitals, ask_database=ask_database)
        self._relay = None if ledger is None else Relay(queue, ledger, self._names)
        self._pruner = None if ledger is None else Pruner(ledger, config.keep_jobs)
        self._loops: list[asyncio.Task[None]] = []
        self._ending: set[str] = set()
        """The names of the loops that are to end."""
        self._running: set[HeldJob] = set()
        self._stopping = False
        self._hurry = asyncio.Event()

    def start(self) -> None:
        """Begin to work."""
        self._heartbeat.start()
        loops: list[_Loop | None] = [self._announcer, self._claimer, self._settler, self._finisher, self._scheduler]
        for loop in filter(None, [*loops, self._health, self._relay, self._pruner]):
            name = type(loop).__name__.lower()
            self._loops.append(asyncio.create_task(self._supervised(name, loop.run), name=name))
        self._loops.append(asyncio.create_task(self._until_slots_are_held(), name="slots"))

    async def failed(self) -> EngineError:
        """Wait until a loop has failed for good; why."""
        while True:
            ended, _ = await asyncio.wait(self._loops, return_when=asyncio.FIRST_EXCEPTION)
            for loop in ended:
                if not loop.cancelled() and isinstance(error := loop.exception(), EngineError):
                    return error
            await asyncio.Event().wait()

    async def idle(self) -> None:
        """Wait until all queues are empty, also of what Redis has lost or never had, and nothing runs (``--burst``)."""
        # Looked at again and again: other workers empty the queues too, and tell nobody.
        while self._held or not await self._nothing_is_left():  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    def hurry(self) -> None:
        """Wait no longer for running jobs."""
        self._hurry.set()

    async def drain(self) -> bool:
        """Stop claiming, let running jobs finish for the grace time, interrupt the rest, and write every outcome.

        Returns:
            Whether all jobs have ended. One that ignores its interruption has not: it is left to the end of its lease,
            and the process should not wait for it either.
        """
        logger.info("draining: %d jobs are running; they have %g s", self._held.running, self._config.grace)
        self._stopping = True
        await self._stop_claiming()
        await self._jobs_ended(self._config.grace)
        for job in self._held:
            job.cancel(Kind.INTERRUPTED)
        if tasks := self._running_tasks():
            await asyncio.wait(tasks, timeout=_UNWINDING)
        for job in self._held:
            if job.phase is Phase.RUNNING:
                logger.error("%s does not end: it is left to the worker that takes it after its lease", job.job_id)
        await self._end("health")  # it would write down again what is to be forgotten
        # Redis may be away, and need not come back for our sake.
        with contextlib.suppress(TimeoutError, RedisError, OSError):
            async with asyncio.timeout(_SETTLING):
                await self._settler.flushed()
                await self._finisher.flushed()
                await self._health.forget()
        if unwritten := sum(job.phase is Phase.FINISHING for job in self._held):
            logger.error("%d outcomes could not be written: those jobs run again after their leases", unwritten)
        await self._stop()
        return not self._running_tasks()

    async def _stop(self) -> None:
        await self._end(*(loop.get_name() for loop in self._loops))
        await in_thread(self._heartbeat.stop)  # what jobs have left in asyncio's own threads may take all of those
        counts = self._counts
        logger.info("stopped: %d jobs done, %d failed, %d retried", counts.done, counts.failed, counts.retried)

    def _start(self, claims: Sequence[Claim], queue: str, token: str, places: Sequence[Place]) -> None:
        """Start the jobs of one claim."""
        loop, allowance = asyncio.get_running_loop(), self._longest_allowance
        started_at, claimed_at = now_ms(), time.monotonic()  # the same for all: they begin in the same turn of the loop
        for claim, (batch, word) in zip(claims, places, strict=True):
            job = HeldJob(claim, queue, token, started_at, allowance, claimed_at, batch, word)
            self._running.add(job)
            job.task = loop.create_task(self._run(job))
            self._held.add(job)  # now the heartbeat's thread may cancel it

    async def _run(self, job: HeldJob) -> None:
        """One held job, from its claim to its report."""
        try:
            outcome = await self._outcome(job)
            self._log.ended(job, outcome)
            self._counts.add(outcome.kind)
            self._settler.report(job, outcome)
            if self._after_job is not None and job.delivery is not None:
                await self._after_job.tell(job.delivery)
        finally:
            self._running.discard(job)
            self._claimer.give_back(job.claim)

    async def _outcome(self, job: HeldJob) -> Outcome:
        try:
            if job.claim.payload is None and not job.claim.unread and self._ledger is not None:
                job.claim = await recall(job.claim, self._ledger)
            outcome = self._reception.receive(job)
            if job.delivery is None and self._ledger is not None:
                job.delivery = await self._delivery_by_row(job, self._ledger)
            outcome = outcome or await self._execute(job)
            return outcome if outcome.kind is not _POSTPONED else await self._unknown.judge(job, outcome)
        except asyncio.CancelledError as error:  # before the executor had begun
            if job.stop is not None:
                return Outcome(job.stop, error=error)
            # Another job's code has cancelled whatever it found; this one has not begun.
            return Outcome(Kind.POSTPONED, error=error, delay=_LATER)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            if job.delivery is None and transient(error) is not None:  # it could not be recalled
                return Outcome(Kind.POSTPONED, error=error, delay=_LATER)
            logger.exception("the engine stumbled over %s; the job fails, the worker goes on", job.job_id)
            return Outcome.failed(error)

    async def _delivery_by_row(self, job: HeldJob, ledger: Ledger) -> Delivery | None:
        """Of a job whose payload cannot be read, as much as its pending row tells: its end settles that."""
        row = await pending_row(job.claim, ledger)
        if row is None:
            return None
        message = Message(row.id, row.task, (), {}, row.enqueued_at, in_ledger=True)
        claim = job.claim
        return Delivery(message, job.queue, claim.tries, claim.crashes, job.started_at, 0)

    def _execute(self, job: HeldJob) -> Awaitable[Outcome]:
        assert job.delivery is not None  # noqa: S101 - reception filled it in
        job.delivery.stop = job.stop  # it may have been cancelled before it was read
        job.allowance = allowance = self._allowances[job.delivery.message.task]
        self._table.begin(job.word, job.delivery.begun + allowance)
        self._log.started(job)
        return self._executor.execute(job.delivery)

    def _settlement(self, job: HeldJob, outcome: Outcome) -> Settlement:
        task = None if job.delivery is None else job.delivery.message.task
        return settlement(job, outcome, keep=self._keep_results.get(task, self._keep_result))

    async def _jobs_ended(self, grace: float) -> None:
        """Wait for running jobs, at most `grace` seconds, or until told to hurry."""
        hurried = asyncio.create_task(self._hurry.wait())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                while (tasks := self._running_tasks()) and not hurried.done():
                    await asyncio.wait({*tasks, hurried}, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()

    def _running_tasks(self) -> set[asyncio.Task[None]]:
        """Not those that others have cancelled before they began: they did not take their jobs off the list."""
        return {job.task for job in self._running if job.task is not None and not job.task.done()}

    async def _stop_claiming(self) -> None:
        """A claim on its way is waited for: what it brings is ours."""
        self._claimer.stop()
        await asyncio.wait(self._loops_named("claimer"), timeout=_SETTLING)
        await self._end("claimer")

    async def _end(self, *names: str) -> None:
        """End these loops. A cancellation without this word is not the engine's, and they go on."""
        self._ending.update(names)
        await end(self._loops_named(*names))

    def _loops_named(self, *names: str) -> list[asyncio.Task[None]]:
        return [loop for loop in self._loops if loop.get_name() in names]

    async def _supervised(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        await supervise(name, run, trouble=self._health.trouble, is_ending=lambda: name in self._ending)

    async def _nothing_is_left(self) -> bool:
        try:
            if any((await self._queue.depths(self._names)).values()):
                return False
            return self._relay is None or not await self._relay.recover()
        except Exception:  # noqa: BLE001 - nobody knows; the loops ask the same servers, and tell
            return False

    async def _until_slots_are_held(self) -> None:
        """Fail once all slots have been held for some time by jobs that nothing can end.

        Raises:
            SlotsHeldError: it is so.
        """
        held_for = 0.0
        while held_for < UNWELL_WITHIN:  # whoever asks is told before the process ends
            await asyncio.sleep(_LOOK)
            held_for = held_for + _LOOK if self._slots_are_held else 0.0
        self.hurry()  # what they were granted has passed
        raise SlotsHeldError(
            f"all {self._config.concurrency} slots are held by jobs past their limits, which do not end"
        )

    @property
    def _slots_are_held(self) -> bool:
        return self._held.overdue >= self._config.concurrency

    def _vitals(self) -> Vitals:
        return Vitals(
            running=self._held.running,
            done=self._counts.done,
            failed=self._counts.failed,
            retried=self._counts.retried,
            loop_lag=self._heartbeat.lag,
            is_claiming=not self._stopping and self._claimer.free_slots > 0,
            last_claim=self._claimer.last_answer,
            last_beat=self._heartbeat.last_beat,
            standstill=self._settler.standstill,
            slots_are_held=self._slots_are_held,
        )

    def _timeout(self, task: Task[..., Any]) -> float:
        return self._config.job_timeout if task.options.timeout is None else task.options.timeout

    def _allowance(self, task: Task[..., Any]) -> float:
        """Seconds for which the lease of an attempt is kept.

        Its body may have to be cancelled, and roll back; or it may have to wait until it is run again.
        """
        return self._timeout(task) + max(self._config.grace, LONGEST_PAUSE)

    @cached_property
    def _keep_result(self) -> int:
        """Milliseconds that a result is kept, of a task that does not say."""
        return milliseconds(self._config.keep_result)

    @cached_property
    def _keep_results(self) -> Mapping[str | None, int]:
        """The same, of those that do."""
        given = {name: task.options.keep_result for name, task in self._tasks.items()}
        return {name: milliseconds(keep) for name, keep in given.items() if keep is not None}

    @cached_property
    def _allowances(self) -> Mapping[str, float]:
        return {name: self._allowance(task) for name, task in self._tasks.items()}

    @cached_property
    def _longest_allowance(self) -> float:
        return max(self._allowances.values(), default=self._config.grace)
