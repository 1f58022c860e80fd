"""``Engine``: start the loops of one worker, and drain them.

1. The claimer fills free slots. The runner takes each claimed job to its outcome, in an asyncio task of its own.
2. The ledger completer and then the broker completer write outcomes. Meanwhile the heartbeat's thread keeps the leases.
3. Each loop is supervised. Draining stops claiming, lets jobs finish for a grace time, then interrupts the rest.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from db.aio.threads import in_thread
from db.database import PoolUsage
from db.text.plural import plural
from worker.broker.broker import Broker
from worker.broker.errors import RedisError
from worker.config import Config
from worker.engine.announcer import Announcer
from worker.engine.arq_options import NO_ARQ_OPTIONS, ArqOptions
from worker.engine.commander import Commander
from worker.engine.draining import Draining
from worker.engine.execution import Phase
from worker.engine.executor import Executor
from worker.engine.health import Health
from worker.engine.health_source import HealthSource
from worker.engine.idle import Idle
from worker.engine.job_flow import JobFlow
from worker.engine.loops import Loop, Loops
from worker.engine.progress import ProgressSender
from worker.engine.pruner import Pruner
from worker.engine.recording import COUNTERS
from worker.engine.relay import Relay
from worker.engine.report_source import ReportSource
from worker.engine.reporter import Reporter
from worker.engine.scheduler import Scheduler
from worker.engine.stuck_slots import StuckSlots
from worker.engine.supervision import EngineError
from worker.ledger import Ledger
from worker.task import Task

logger = logging.getLogger("worker")

_FLUSHING = 10.0  # seconds that the last outcomes have to reach Redis; later, their jobs run again after their leases


class Engine:
    """One worker.

    Args:
        tasks: the tasks of the worker, by name.
        executor: executes admitted jobs.
        ask_database: checks that the default database answers.
        ledger: the job rows (default: none are kept).
        pool: returns how the pool of the default database is used.
        arq: what arq's settings change.
    """

    def __init__(
        self,
        config: Config,
        tasks: Mapping[str, Task[..., Any]],
        broker: Broker,
        executor: Executor,
        *,
        ask_database: Callable[[], Awaitable[None]],
        ledger: Ledger | None = None,
        pool: Callable[[], PoolUsage | None] = lambda: None,
        arq: ArqOptions = NO_ARQ_OPTIONS,
    ) -> None:
        names = config.queue_names
        relay = None if ledger is None else Relay(broker, ledger, names)
        self.jobs = jobs = JobFlow(
            config,
            tasks,
            broker,
            executor,
            ledger,
            guarded=lambda: frozenset() if relay is None else relay.guarded,
            arq=arq,
        )
        if relay is not None:
            relay.on_unguarded = jobs.claimer.wake
        self.counts = jobs.log.counts
        """How many attempts were done, failed and retried."""
        self._after_job = arq.after_job
        self._draining = draining = Draining(jobs.executions, config.grace)
        health = HealthSource(jobs, draining)
        self._health = Health(broker, names, config.id, health.snapshot, ask_database, arq_key=arq.health_check_key)
        self.report = report = ReportSource(config, jobs, draining, self._health, pool, executor, relay)
        self._reporter = Reporter(
            broker,
            names,
            jobs.meter,
            worker_id=config.id,
            process=report.process,
            scheduled=[name for name, task in tasks.items() if task.schedule is not None],
            describe=report.describe,
            running=report.running,
        )
        self._progress = ProgressSender(broker)
        executor.use_progress(self._progress)
        self._executor = executor
        self._commander = Commander(broker, names, report.process, jobs.claimer)
        scheduler = Scheduler(broker, tasks, config.queue if config.queue in names else names[0], ledger)
        self._idle = Idle(jobs.executions, broker, names, relay, scheduler, jobs.slots)
        self._parts: dict[str, Loop | None] = {
            "announcer": Announcer(broker, names, list(tasks), process=report.process, obey=self._commander.obey),
            "commander": self._commander,
            "claimer": jobs.claimer,
            "ledger completer": jobs.ledger_completer,
            "broker completer": jobs.broker_completer,
            "scheduler": scheduler,
            "health": self._health,
            "reporter": self._reporter,
            "relay": relay,
            "pruner": None if ledger is None else Pruner(ledger, config.keep_jobs),
            "stuck slots": StuckSlots(jobs.executions, draining.hurry),
        }
        self._loops = Loops(self._health.record_failure)

    def start(self) -> None:
        """Start the heartbeat and every loop."""
        self.jobs.heartbeat.start()
        self._progress.start()
        for name, loop in self._parts.items():
            if loop is not None:
                self._loops.start(name, loop)

    async def failed(self) -> EngineError:
        """Wait until a loop has failed for good, and return its error."""
        return await self._loops.failed()

    async def idle(self) -> None:
        """Wait until no job runs, all queues are empty and no pending row is unpublished (``--burst``)."""
        await self._idle.reached()

    async def told_to_stop(self) -> None:
        """Wait until a person tells this worker to stop, from afar."""
        await self._commander.told_to_stop.wait()

    def hurry(self) -> None:
        """Stop waiting for running jobs."""
        self._draining.hurry()

    async def drain(self) -> bool:
        """Stop claiming, let running jobs finish for the grace time, interrupt the rest, and write every outcome.

        Returns:
            Whether all jobs have ended. A job that ignores its interruption has not. Another worker runs it again
            after its lease, so the process should not wait for it.
        """
        self._draining.begin()
        self.jobs.claimer.stop()
        await self._loops.returned("claimer", within=_FLUSHING)  # the jobs of a claim on its way are ours
        await self._loops.end("claimer")
        self._executor.hurry_chunks()
        await self._draining.finish()
        await self._draining.interrupt()
        if self._after_job is not None:
            self._after_job.give_up()
        await self._loops.end("health", "reporter")  # they would write down again what is to be forgotten
        await self._flush()
        await self._loops.end()
        await in_thread(self.jobs.heartbeat.stop)  # jobs may have left work in all of asyncio's own threads
        done, failed, retried = (self.counts[each] for each in COUNTERS)
        logger.info("stopped: %s done, %d failed, %d retried", plural(done, "job"), failed, retried)
        return not self.jobs.executions.tasks

    async def _flush(self) -> None:
        """Write the last outcomes and counts, and delete the worker's records. Give up if Redis stays away."""
        with contextlib.suppress(TimeoutError, RedisError, OSError):
            async with asyncio.timeout(_FLUSHING):
                await self.jobs.ledger_completer.flushed()
                await self._health.forget()
                await self._reporter.forget()
        if unwritten := sum(execution.phase is Phase.FINISHING for execution in self.jobs.executions):
            lost = plural(unwritten, "outcome")
            logger.error("%s could not be written: their jobs run again after their leases", lost)
