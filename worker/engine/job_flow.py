"""``JobFlow``: the parts of an engine that a job passes, from its claim to its recorded outcome."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from worker.broker.broker import Broker
from worker.config import Config
from worker.engine.admission import Admission
from worker.engine.arq_options import ArqOptions
from worker.engine.broker_completer import BrokerCompleter
from worker.engine.burst_slots import slots_for
from worker.engine.claimer import Claimer
from worker.engine.executions import Executions
from worker.engine.executor import Executor
from worker.engine.heartbeat import Heartbeat
from worker.engine.job_log import JobLog
from worker.engine.ledger_completer import LedgerCompleter
from worker.engine.limits import Limits, limits_of
from worker.engine.measuring import Measuring
from worker.engine.payload_recovery import PayloadRecovery
from worker.engine.sentry_runner import runner_class
from worker.engine.unknown_jobs import UnknownJobs
from worker.keeper.table import LeaseTable
from worker.ledger import Ledger
from worker.metrics.meter import Meter
from worker.task import Task

_ROOM = 4  # batches a slot in the keeper's table, which also holds jobs whose outcomes are being written


class JobFlow:
    """The parts that a job passes: claimer, runner, ledger completer and broker completer, and what they share.

    Args:
        tasks: the tasks of the worker, by name.
        executor: executes admitted jobs.
        ledger: the job rows. None: none are kept.
        guarded: returns the queues of which nothing may be claimed while Redis may have lost their pauses.
        arq: what arq's settings change.
    """

    def __init__(
        self,
        config: Config,
        tasks: Mapping[str, Task[..., Any]],
        broker: Broker,
        executor: Executor,
        ledger: Ledger | None,
        *,
        guarded: Callable[[], Collection[str]],
        arq: ArqOptions,
    ) -> None:
        limits = limits_of(tasks, config)
        widest = Limits.of_unknown(config, limits)
        table = LeaseTable(_ROOM * config.concurrency)
        self.executions = Executions(config.concurrency)
        self.slots = slots_for(config.concurrency, arq.max_burst_jobs)
        executor.use_chunks(self.slots)
        self.log = JobLog(config.log_jobs, log_results=arq.log_results)
        self.meter = _meter(tasks, config)
        self.unknown_jobs = UnknownJobs(broker, unknown_for=config.unknown_for)
        measuring = Measuring(self.meter, has_ledger=ledger is not None)
        self.broker_completer = BrokerCompleter(broker, self.executions, measuring, worker_id=config.id)
        self.ledger_completer = LedgerCompleter(ledger, self.broker_completer)
        runner = runner_class()(
            self.executions,
            self.slots,
            PayloadRecovery(ledger),
            Admission(tasks, limits, widest, max_crashes=config.max_crashes, accept_pickle=config.accept_pickle),
            executor,
            self.unknown_jobs,
            self.ledger_completer,
            self.log,
            arq.after_job,
        )
        self.heartbeat = Heartbeat.of(self.executions, table, broker, config)
        self.claimer = Claimer(
            broker,
            config.queue_names,
            slots=self.slots,
            lease=config.lease,
            start=runner.start,
            table=table,
            longest_lease=widest.lease,
            keeps_leases=lambda: not self.executions or self.heartbeat.is_fresh,
            guarded=guarded,
        )


def _meter(tasks: Mapping[str, Task[..., Any]], config: Config) -> Meter:
    """A meter with a row for each task, so that Prometheus sees a task's first job as an increase from 0."""
    meter = Meter(tasks)
    for name, task in tasks.items():
        if (queue := task.options.queue or config.queue) in config.queue_names:
            meter.row(queue, name)
    return meter
