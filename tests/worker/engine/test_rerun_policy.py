"""The rerun policy: how often one attempt is run again at no cost."""

import time

import pytest
from sqlalchemy.exc import DBAPIError

from db import DatabaseUnreachableError
from db.transient import Transient
from worker.engine import rerun_policy as patience
from worker.engine.outcome import Rerun
from worker.engine.rerun_policy import BusyRows, RerunPolicy
from worker.message import Message

CONFLICT = Rerun(Transient.CONFLICT, ValueError())
STALE = Rerun(Transient.STALE_PLAN, ValueError())
READ_ONLY = Rerun(Transient.READ_ONLY, ValueError())
LOST = Rerun(Transient.LOST, ValueError())
AWAY = Rerun(Transient.LOST, DatabaseUnreachableError("down"))


def full(sqlstate: str) -> Rerun:
    error = Exception("of the server")
    error.sqlstate = sqlstate  # type: ignore[attr-defined]  # as drivers do
    return Rerun(Transient.LOST, DBAPIError(None, None, error))


def allowed(rerun: Rerun, times: int) -> list[bool]:
    limited = RerunPolicy()
    return [limited.allows(rerun) for _ in range(times)]


class TestFreeReruns:
    @pytest.mark.parametrize("rerun", [CONFLICT, STALE])
    def test_five_conflicts_are_rerun_for_free(self, rerun: Rerun) -> None:
        """Transactions that conflict five times in a row do so for a reason."""
        assert allowed(rerun, 6) == [True] * 5 + [False]

    def test_five_lost_connections_are_rerun_for_free(self) -> None:
        """A job that loses its connection every time may be the cause."""
        assert allowed(LOST, 6) == [True] * 5 + [False]

    def test_a_connection_that_the_job_ended_itself_is_not_rerun_for_free(self) -> None:
        """A job that sat idle for too long, or ended its own backend, would do so again."""
        assert allowed(Rerun(Transient.ENDED, ValueError()), 1) == [False]

    @pytest.mark.parametrize("rerun", [AWAY, full("53300"), full("57P03")])
    def test_a_server_that_takes_no_connections_is_waited_for_without_limit(self, rerun: Rerun) -> None:
        """An outage is not the job's fault."""
        assert allowed(rerun, 1000) == [True] * 1000
        group = Rerun(Transient.LOST, ExceptionGroup("g", [rerun.error] * 2))  # type: ignore[type-var]  # exceptions all
        assert allowed(group, 100) == [True] * 100

    def test_a_read_only_server_is_waited_for_a_minute(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A failover ends; a task that writes to a replica does not."""
        now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: now)
        waiting = RerunPolicy()
        assert waiting.allows(READ_ONLY)
        now += 59
        assert waiting.allows(READ_ONLY)
        now += 2
        assert not waiting.allows(READ_ONLY)

    def test_each_kind_of_trouble_has_its_own_count(self) -> None:
        """A conflict after an outage is the first conflict."""
        mixed = RerunPolicy()
        assert all(mixed.allows(rerun) for rerun in [CONFLICT, LOST, AWAY] * 4)
        assert mixed.allows(CONFLICT)
        assert not mixed.allows(CONFLICT)
        assert mixed.allows(LOST)


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that are made from now on, in seconds; none is really made."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(patience.asyncio, "sleep", sleep)  # type: ignore[attr-defined]  # what it imports
    return pauses


class TestPauseBetweenReruns:
    async def test_the_pauses_after_conflicts_grow_and_sum_to_less_than_a_second(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All reruns of a conflict together take less than a second."""
        pauses = recorded(monkeypatch)
        limited = RerunPolicy()
        while limited.allows(CONFLICT):
            await limited.pause(Transient.CONFLICT)
        assert 0.1 < sum(pauses) < 1

    async def test_the_pause_grows_to_two_seconds_while_the_database_is_down(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The database is asked less and less often, but at least every two seconds."""
        pauses = recorded(monkeypatch)
        limited = RerunPolicy()
        for _ in range(2000):
            await limited.pause(Transient.LOST)
        assert pauses[0] < 0.1
        assert all(1.0 <= pause <= 2.0 for pause in pauses[10:])


class TestBusyRows:
    def test_each_job_has_its_own_count_of_busy_rows(self) -> None:
        """A job is known by its id and its enqueue time."""
        busy = BusyRows()
        first, second = Message("j1", "send", enqueued_at=1), Message("j1", "send", enqueued_at=2)
        assert [busy.put_off(first) for _ in range(7)] == [1, 2, 4, 8, 16, None, None]
        assert busy.put_off(second) == 1

    def test_the_count_of_a_job_not_seen_for_ten_minutes_is_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Such a job has ended, here or on another worker."""
        now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: now)
        busy = BusyRows()
        for job_id in ("j1", "j2"):
            busy.put_off(Message(job_id, "send"))
        now += 400
        busy.put_off(Message("j1", "send"))
        now += 400
        busy.put_off(Message("j3", "send"))
        assert busy.put_off(Message("j1", "send")) == 4
        assert busy.put_off(Message("j2", "send")) == 1
