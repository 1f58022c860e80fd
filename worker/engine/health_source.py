"""``HealthSource``: collect the state of an engine for its health record."""

from dataclasses import dataclass

from worker.engine.draining import Draining
from worker.engine.health import HealthSnapshot
from worker.engine.job_flow import JobFlow


@dataclass(frozen=True, slots=True)
class HealthSource:
    """The parts of an engine whose state shows whether it can work."""

    jobs: JobFlow
    draining: Draining

    def snapshot(self) -> HealthSnapshot:
        """Return the state at this moment."""
        jobs, counts = self.jobs, self.jobs.log.counts
        return HealthSnapshot(
            running=jobs.executions.running,
            done=counts["done"],
            failed=counts["failed"],
            retried=counts["retried"],
            loop_lag=jobs.heartbeat.lag,
            is_claiming=not self.draining.has_begun and not jobs.claimer.is_quiet and jobs.slots.free > 0,
            last_claim=jobs.claimer.last_answer,
            last_beat=jobs.heartbeat.last_beat,
            standstill=jobs.ledger_completer.standstill,
            slots_are_held=jobs.executions.hold_all_slots_overdue,
        )
