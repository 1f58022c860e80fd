"""What an exception means for its job, decided as one value."""

from typing import Any

import arq.worker
import pytest
from sqlalchemy.exc import DBAPIError, IntegrityError

from db import DatabaseUnreachableError
from db.transient import Transient
from worker import Retry, Task, task
from worker.engine.outcome import Outcome, OutcomeKind, Rerun, backoff, count_as_try, judge


class Answer(Exception):  # noqa: N818 - a driver's exception
    """What a driver raises for a server's answer."""

    def __init__(self, sqlstate: str | None) -> None:
        super().__init__("of the server")
        self.sqlstate = sqlstate


def answered(sqlstate: str) -> DBAPIError:
    return DBAPIError("SELECT", {}, Answer(sqlstate))


def verdict(error: BaseException, *, tries: int = 0, max_tries: int = 3, **options: Any) -> Outcome | Rerun:
    async def some() -> None: ...

    decorate: Any = task(**options)
    any_task: Task[..., Any] = decorate(some)
    return judge(error, any_task, tries=tries, max_tries=max_tries)


class TestJudge:
    @pytest.mark.parametrize("sqlstate", ["40001", "40P01", "55P03"])
    def test_a_database_conflict_asks_for_a_rerun(self, sqlstate: str) -> None:
        """Serialisation failures, deadlocks and locks that are not free ask for another run of the same attempt."""
        error = answered(sqlstate)
        assert verdict(error) == Rerun(Transient.CONFLICT, error)

    @pytest.mark.parametrize(
        "error", [answered("53300"), answered("57P01"), answered("08006"), DatabaseUnreachableError("down")]
    )
    def test_a_lost_database_connection_asks_for_a_rerun(self, error: Exception) -> None:
        """The server is away, has no connection left, or has cut this one."""
        assert verdict(error) == Rerun(Transient.LOST, error)

    @pytest.mark.parametrize("sqlstate", ["23505", "23503", "22012", "42P01", "57014", "25P02"])
    def test_other_database_errors_fail_the_job(self, sqlstate: str) -> None:
        """Integrity errors, mistakes in SQL, a statement that took too long: running again would not help."""
        error = IntegrityError("INSERT", {}, Answer(sqlstate))
        assert verdict(error) == Outcome.failed(error)

    def test_a_transient_database_error_is_a_rerun_even_if_retry_on_names_it(self) -> None:
        """A task that retries on everything does not pay for the database's trouble."""
        assert isinstance(verdict(answered("40001"), retry_on=(Exception,)), Rerun)

    @pytest.mark.parametrize("error", [ConnectionRefusedError(), TimeoutError(), OSError("of an API")])
    def test_a_tasks_own_network_error_fails_the_job(self, error: Exception) -> None:
        """Network errors of other services are not taken for the database's."""
        assert verdict(error) == Outcome.failed(error)

    def test_an_exception_group_of_conflicts_alone_is_a_conflict(self) -> None:
        """An exception group is as transient as its members."""
        error = ExceptionGroup("g", [answered("40001"), answered("40P01")])
        assert verdict(error) == Rerun(Transient.CONFLICT, error)
        mixed = ExceptionGroup("g", [answered("40001"), ValueError()])
        assert verdict(mixed) == Outcome.failed(mixed)

    def test_retry_costs_a_try_and_fails_the_job_in_the_last_one(self) -> None:
        """The cause of that failure is the `Retry`."""
        asked = Retry(defer=5)
        assert verdict(asked, tries=1, max_tries=3) == Outcome(OutcomeKind.RETRIED, error=_any(), delay=5.0)
        last = verdict(asked, tries=2, max_tries=3)
        assert isinstance(last, Outcome)
        assert last.kind is OutcomeKind.FAILED
        assert last.error is not None
        assert last.error.__cause__ is asked

    @pytest.mark.parametrize(
        ("members", "wait"),
        [
            ([Retry(defer=5)], 5.0),
            ([Retry(defer=5), arq.worker.Retry(defer=7)], 7.0),
            ([Retry(defer=5), answered("40001")], 5.0),
            ([Retry(defer=500), KeyError()], 500.0),
            ([answered("57P01"), ExceptionGroup("inner", [Retry(defer=9), KeyError()])], 9.0),
        ],
    )
    def test_an_exception_group_is_retried_if_every_member_asks_for_it(
        self, members: list[Exception], wait: float
    ) -> None:
        """It waits for the longest of their delays, and costs a try."""
        error = ExceptionGroup("g", members)
        assert verdict(error, retry_on=(LookupError,)) == Outcome(OutcomeKind.RETRIED, error=_any(), delay=wait)
        last = verdict(error, tries=2, max_tries=3, retry_on=(LookupError,))
        assert isinstance(last, Outcome)
        assert last.kind is OutcomeKind.FAILED
        assert last.error is error or (last.error is not None and last.error.__cause__ is error)
        final = ExceptionGroup("g", [*members, ValueError()])
        assert verdict(final, retry_on=(LookupError,)) == Outcome.failed(final)

    def test_the_backoff_of_retry_on_counts_beside_a_retry_in_the_same_group(self) -> None:
        """When the tries are used up, the error is the group."""
        error = ExceptionGroup("g", [Retry(), KeyError()])
        again = verdict(error, tries=1, retry_on=(LookupError,))
        assert isinstance(again, Outcome)
        assert 1.5 <= again.delay <= 2.5
        assert verdict(error, tries=2, retry_on=(LookupError,)) == Outcome.failed(error)

    def test_an_exception_group_that_retry_on_names_is_retried_whatever_it_holds(self) -> None:
        """A `Retry` in it still sets the delay."""
        odd = ExceptionGroup("g", [ValueError(), TypeError()])
        assert verdict(odd, retry_on=(ExceptionGroup,)) == Outcome(OutcomeKind.RETRIED, error=odd, delay=_any())
        asked = ExceptionGroup("g", [Retry(defer=77), ValueError()])
        assert verdict(asked, retry_on=(Exception,)) == Outcome(OutcomeKind.RETRIED, error=asked, delay=77.0)

    def test_arqs_retry_is_recognised_by_its_class_not_its_name(self) -> None:
        """arq's `Retry` and its subclasses are requests; other classes of that name are errors."""
        assert verdict(arq.worker.Retry(defer=2)) == Outcome(OutcomeKind.RETRIED, error=_any(), delay=2.0)
        other = type("Retry", (Exception,), {"__module__": "celery"})()
        assert verdict(other) == Outcome.failed(other)

    def test_a_rerun_counted_as_a_try_is_a_retry_or_a_failure(self) -> None:
        """Trouble that does not go away is retried with backoff, and fails the job in the last try."""
        rerun = Rerun(Transient.CONFLICT, answered("40001"))
        assert count_as_try(rerun, tries=0, max_tries=2).kind is OutcomeKind.RETRIED
        assert count_as_try(rerun, tries=1, max_tries=2) == Outcome.failed(rerun.error)


class TestBackoff:
    @pytest.mark.parametrize(("tries", "seconds"), [(0, 1), (1, 2), (5, 32), (9, 300), (1000, 300), (10_000, 300)])
    def test_the_backoff_doubles_up_to_five_minutes_with_jitter(self, tries: int, seconds: float) -> None:
        """1, 2, 4, ... seconds, a quarter more or less, whatever the number of tries."""
        delays = {backoff(tries) for _ in range(50)}
        assert len(delays) > 40
        assert all(0.75 * seconds <= delay <= 1.25 * seconds for delay in delays)


class _Any:
    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


def _any() -> Any:
    return _Any()
