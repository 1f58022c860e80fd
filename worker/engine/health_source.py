"""``HealthSource``: collect the state of an engine for its health record."""

from dataclasses import dataclass

from worker.engine.claimer import Claimer
from worker.engine.draining import Draining
from worker.engine.executions import Executions
from worker.engine.health import HealthSnapshot
from worker.engine.heartbeat import Heartbeat
from worker.engine.job_log import JobLog
from worker.engine.ledger_completer import LedgerCompleter
from worker.engine.slots import Slots


@dataclass(frozen=True, slots=True)
class HealthSource:
    """The parts of an engine whose state shows whether it can work."""

    executions: Executions
    slots: Slots
    log: JobLog
    heartbeat: Heartbeat
    claimer: Claimer
    ledger_completer: LedgerCompleter
    draining: Draining

    def snapshot(self) -> HealthSnapshot:
        """Return the state at this moment."""
        counts = self.log.counts
        return HealthSnapshot(
            running=self.executions.running,
            done=counts["done"],
            failed=counts["failed"],
            retried=counts["retried"],
            loop_lag=self.heartbeat.lag,
            is_claiming=not self.draining.has_begun and not self.claimer.is_quiet and self.slots.free > 0,
            last_claim=self.claimer.last_answer,
            last_beat=self.heartbeat.last_beat,
            standstill=self.ledger_completer.standstill,
            slots_are_held=self.executions.hold_all_slots_overdue,
        )
