"""How often one attempt is run again at no cost."""

import time

import pytest
from sqlalchemy.exc import DBAPIError

from db import DatabaseUnreachableError
from db.transient import Transient
from worker.engine import patience
from worker.engine.outcome import Rerun
from worker.engine.patience import BusyRows, RerunPolicy
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


class TestAllows:
    @pytest.mark.parametrize("rerun", [CONFLICT, STALE])
    def test_five_conflicts(self, rerun: Rerun) -> None:
        """Two transactions that meet five times in a row meet for a reason."""
        assert allowed(rerun, 6) == [True] * 5 + [False]

    def test_five_lost_connections(self) -> None:
        """A job that loses its connection every time may be what ends it."""
        assert allowed(LOST, 6) == [True] * 5 + [False]

    def test_no_connection_that_it_ended_itself(self) -> None:
        """A job that sat idle for too long, or ended its own backend, would do so again."""
        assert allowed(Rerun(Transient.ENDED, ValueError()), 1) == [False]

    @pytest.mark.parametrize("rerun", [AWAY, full("53300"), full("57P03")])
    def test_a_server_that_takes_no_connections_for_ever(self, rerun: Rerun) -> None:
        """While the database is away it is nobody's fault."""
        assert allowed(rerun, 1000) == [True] * 1000
        group = Rerun(Transient.LOST, ExceptionGroup("g", [rerun.error] * 2))  # type: ignore[type-var]  # exceptions all
        assert allowed(group, 100) == [True] * 100

    def test_a_read_only_server_for_a_minute(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A failover ends; a task that writes to a replica does not."""
        now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: now)
        waiting = RerunPolicy()
        assert waiting.allows(READ_ONLY)
        now += 59
        assert waiting.allows(READ_ONLY)
        now += 2
        assert not waiting.allows(READ_ONLY)

    def test_each_kind_is_counted_by_itself(self) -> None:
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


class TestPause:
    async def test_grows_with_each_conflict_and_stays_short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """All reruns of a conflict together take less than a second."""
        pauses = recorded(monkeypatch)
        limited = RerunPolicy()
        while limited.allows(CONFLICT):
            await limited.pause(Transient.CONFLICT)
        assert 0.1 < sum(pauses) < 1

    async def test_grows_to_a_limit_while_the_database_is_away(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A database that is away is asked more and more seldom, but at least every few seconds."""
        pauses = recorded(monkeypatch)
        limited = RerunPolicy()
        for _ in range(2000):
            await limited.pause(Transient.LOST)
        assert pauses[0] < 0.1
        assert all(1.0 <= pause <= 2.0 for pause in pauses[10:])


class TestBusyRows:
    def test_each_job_is_counted_by_itself(self) -> None:
        """A job is known by its id and its enqueue time."""
        busy = BusyRows()
        first, second = Message("j1", "send", enqueued_at=1), Message("j1", "send", enqueued_at=2)
        assert [busy.put_off(first) for _ in range(7)] == [1, 2, 4, 8, 16, None, None]
        assert busy.put_off(second) == 1

    def test_what_was_met_long_ago_is_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A job that is not met for ten minutes has ended, here or elsewhere."""
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
