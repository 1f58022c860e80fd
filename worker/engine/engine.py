"""``Engine``: claims jobs, runs them, reports what became of them, and keeps their leases meanwhile.

1. The claimer fills free slots; each claimed job is one asyncio task, which the executor takes from claim to outcome.
2. The finisher writes outcomes; the heartbeat's thread keeps the leases of all that is held.
3. The scheduler queues what the clock says; health is written down every second.
4. Each loop is supervised. Draining stops claiming first, lets jobs finish for a grace time, then interrupts the rest.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from redis.exceptions import RedisError

from worker.config import Config
from worker.engine.calling import AfterJob
from worker.engine.claimer import Claimer
from worker.engine.executor import Executor
from worker.engine.finisher import Finisher
from worker.engine.health import Health, Vitals
from worker.engine.heartbeat import Heartbeat
from worker.engine.held import HeldJob, HeldJobs
from worker.engine.outcome import Kind, Outcome
from worker.engine.reception import Reception
from worker.engine.report import Counts, JobLog, settlement
from worker.engine.scheduler import Scheduler
from worker.engine.supervision import EngineError, supervise
from worker.queue import Claim, Queue, Settlement, now_ms
from worker.renewal import Renewal
from worker.task import Task

logger = logging.getLogger("worker")

_SETTLING = 10.0  # seconds that the last outcomes have to reach Redis; after that, leases bring their jobs back


class Engine:
    """One worker.

    Args:
        tasks: by name.
        executor: runs their jobs.
        ask_database: asks the default database for an answer.
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
        after_job: AfterJob | None = None,
    ) -> None:
        self._config = config
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
            unknown_for=config.unknown_for,
            accept_pickle=config.accept_pickle,
        )
        self._claimer = Claimer(queue, self._names, slots=config.concurrency, lease=config.lease, start=self._start)
        self._finisher = Finisher(queue, self._held, self._settlement)
        self._heartbeat = Heartbeat(
            self._held,
            lambda name: Renewal(queue.url, name, round(config.lease * 1000)),
            self._names,
            lease=config.lease,
            silence=self._longest_timeout + config.grace,
        )
        self._scheduler = Scheduler(queue, tasks, self._names[0])
        self._health = Health(queue, self._names, config.id, vitals=self._vitals, ask_database=ask_database)
        self._loops: list[asyncio.Task[None]] = []
        self._hurry = asyncio.Event()

    def start(self) -> None:
        """Begin to work."""
        self._heartbeat.start()
        for loop in (self._claimer, self._finisher, self._scheduler, self._health):
            name = type(loop).__name__.lower()
            self._loops.append(asyncio.create_task(self._supervised(name, loop.run), name=name))

    async def failed(self) -> EngineError:
        """Wait until a loop has failed for good; why."""
        while True:
            ended, _ = await asyncio.wait(self._loops, return_when=asyncio.FIRST_EXCEPTION)
            for loop in ended:
                if not loop.cancelled() and isinstance(error := loop.exception(), EngineError):
                    return error
            await asyncio.Event().wait()

    async def idle(self) -> None:
        """Wait until all queues are empty and nothing runs (``--burst``)."""
        # Looked at again and again: other workers empty the queues too, and tell nobody.
        while self._held or not await self._queues_are_empty():  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    def hurry(self) -> None:
        """Wait no longer for running jobs."""
        self._hurry.set()

    async def drain(self) -> None:
        """Stop claiming, let running jobs finish for the grace time, interrupt the rest, and write every outcome."""
        logger.info("draining: %d jobs are running; they have %g s", self._held.running, self._config.grace)
        self._claimer.stop()
        await self._loop_ended("claimer")
        await self._jobs_ended(self._config.grace)
        for job in self._held:
            job.cancel(Kind.INTERRUPTED)
        await self._all_jobs_ended()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLING):
                await self._finisher.flushed()
                await self._health.forget()
        await self._stop()

    async def _stop(self) -> None:
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await asyncio.to_thread(self._heartbeat.stop)
        counts = self._counts
        logger.info("stopped: %d jobs done, %d failed, %d retried", counts.done, counts.failed, counts.retried)

    def _start(self, claim: Claim, queue: str, token: str) -> None:
        job = HeldJob(claim, queue, token, started_at=now_ms())
        self._held.add(job)
        job.task = asyncio.create_task(self._run(job))

    async def _run(self, job: HeldJob) -> None:
        """One held job, from its claim to its report."""
        outcome = await self._outcome(job)
        self._log.ended(job, outcome)
        self._counts.add(outcome.kind)
        self._finisher.report(job, outcome)
        if self._after_job is not None and job.delivery is not None:
            await self._after_job.tell(job.delivery)
        self._claimer.give_back()

    async def _outcome(self, job: HeldJob) -> Outcome:
        try:
            return self._reception.receive(job) or await self._execute(job)
        except asyncio.CancelledError as error:  # before the executor had begun
            return Outcome(Kind.INTERRUPTED if job.delivery is None else job.delivery.stop, error=error)
        except Exception as error:
            logger.exception("the engine stumbled over %s; the job fails, the worker goes on", job.job_id)
            return Outcome.failed(error)

    async def _execute(self, job: HeldJob) -> Outcome:
        assert job.delivery is not None  # noqa: S101 - reception filled it in
        task = self._tasks[job.delivery.message.task]
        job.renew_until = time.monotonic() + self._timeout(task) + self._config.grace
        self._log.started(job)
        return await self._executor.execute(job.delivery)

    def _settlement(self, job: HeldJob, outcome: Outcome) -> Settlement:
        task = self._tasks.get(job.delivery.message.task) if job.delivery is not None else None
        keep = task.options.keep_result if task is not None else None
        return settlement(job, outcome, keep_result=self._config.keep_result if keep is None else keep)

    async def _jobs_ended(self, grace: float) -> None:
        """Wait for running jobs, at most `grace` seconds, or until told to hurry."""
        ended = asyncio.create_task(self._all_jobs_ended())
        hurried = asyncio.create_task(self._hurry.wait())
        await asyncio.wait({ended, hurried}, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        for waiting in (ended, hurried):
            waiting.cancel()
        await asyncio.gather(ended, hurried, return_exceptions=True)

    async def _all_jobs_ended(self) -> None:
        running = {job.task for job in self._held if job.task is not None and not job.task.done()}
        if running:
            await asyncio.wait(running)

    async def _loop_ended(self, name: str) -> None:
        loops = [loop for loop in self._loops if loop.get_name() == name]
        await asyncio.wait(loops, timeout=_SETTLING)

    async def _supervised(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        await supervise(name, run, trouble=self._health.redis_trouble, reconnect=self._queue.reconnect)

    async def _queues_are_empty(self) -> bool:
        try:
            return not any((await self._queue.depths(self._names)).values())
        except (RedisError, OSError):  # nobody knows; the loops wait for Redis too
            return False

    def _vitals(self) -> Vitals:
        return Vitals(
            running=self._held.running,
            done=self._counts.done,
            failed=self._counts.failed,
            retried=self._counts.retried,
            loop_lag=self._heartbeat.lag,
            last_claim=self._claimer.last_answer,
            last_beat=self._heartbeat.last_beat,
        )

    def _timeout(self, task: Task[..., Any]) -> float:
        return self._config.job_timeout if task.options.timeout is None else task.options.timeout

    @property
    def _longest_timeout(self) -> float:
        return max((self._timeout(task) for task in self._tasks.values()), default=0.0)
