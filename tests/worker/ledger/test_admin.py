"""Job administration: failed jobs are found, retried and discarded, on PostgreSQL and SQLite."""

import asyncio
import pickle
from typing import Any

import pytest
from sqlalchemy import select, text

import db
from tests.servers import Observer
from tests.waiting import eventually
from worker.ledger import FinalRow, Ledger, State
from worker.ledger.admin import FailureCount, JobAdmin, JobFilter, Key, Rejection, earlier_ends
from worker.message import Message, encode
from worker.new_job import NewJob

DIRECT = encode("send", b'{"to":"ann"}', 1_000)
FAILED = FinalRow(
    "j1", 1_000, "send", "mail", State.FAILED, payload=DIRECT, error="ValueError: no", traceback="Traceback", tries=3
)


@pytest.fixture
def ledger(database: db.Database[Any]) -> Ledger:
    return Ledger()


@pytest.fixture
def admin(ledger: Ledger) -> JobAdmin:
    return JobAdmin()


async def row(admin: JobAdmin, job_id: str = "j1") -> dict[str, Any]:
    return dict((await admin.all_of(job_id))[0])


class TestFinding:
    async def test_failed_jobs_are_found_by_task_queue_and_part_of_the_error(
        self, ledger: Ledger, admin: JobAdmin
    ) -> None:
        """Jobs in other states are not found."""
        await ledger.complete(
            [
                FAILED,
                FAILED._replace(id="j2", task="bill"),
                FAILED._replace(id="j3", queue="other"),
                FAILED._replace(id="j4", error="KeyError: 'a_b'"),
                FAILED._replace(id="done", state=State.DONE, error=None),
            ]
        )
        for job_filter, ids in (
            (JobFilter(), {"j1", "j2", "j3", "j4"}),
            (JobFilter(task="bill"), {"j2"}),
            (JobFilter(queue="other"), {"j3"}),
            (JobFilter(error="valueERROR"), {"j1", "j2", "j3"}),
            (JobFilter(error="a_b"), {"j4"}),
            (JobFilter(error="aXb"), set()),
            (JobFilter(error="%"), set()),
            (JobFilter(task="bill", error="KeyError"), set()),
            (JobFilter(State.DONE), {"done"}),
        ):
            assert {row.id for row in await admin.lines(job_filter, 10)} == ids
            assert {key.id for key in await admin.keys(job_filter)} == ids
            assert sum(count.jobs for count in await admin.tallies(job_filter)) == len(ids)

    async def test_the_list_shows_the_latest_failed_jobs_and_the_counts_include_all(
        self, ledger: Ledger, admin: JobAdmin
    ) -> None:
        """The list is cut, newest first. The most frequent kind of failure is counted first."""
        for number in range(4):
            await ledger.complete([FAILED._replace(id=f"j{number}", error="E: 1" if number else "E: 0")])
            await asyncio.sleep(0.002)  # the database's clock tells them apart
        assert [row.id for row in await admin.lines(JobFilter(), 2)] == ["j3", "j2"]
        await ledger.complete([FAILED._replace(id="j9", error="KeyError: 'x'")])
        assert await admin.tallies(JobFilter()) == [
            FailureCount(4, "send", "E: #"),
            FailureCount(1, "send", "KeyError: 'x'"),
        ]

    async def test_failures_are_grouped_by_task_and_error_with_numbers_masked(
        self, ledger: Ledger, admin: JobAdmin
    ) -> None:
        """Equal errors are shown as they are."""
        errors = [
            *(f"ValueError: card of order {number} is void" for number in (6, 7, 1234)),
            *(f"mail.S3Error: HTTP 404\nrequest {number}" for number in (1, 1)),
            "IntegrityError: key 5e0f-11 exists\n[SQL: INSERT]\n(Background)",
            "IntegrityError: key ad7f-99 exists\n[SQL: INSERT]\n(Background)",
            "IntegrityError: no such table",
            "KeyError",
        ]
        await ledger.complete([FAILED._replace(id=f"j{number}", error=error) for number, error in enumerate(errors)])
        await ledger.complete([FAILED._replace(id="bill", task="bill", error=errors[0])])
        assert await admin.tallies(JobFilter()) == [
            FailureCount(3, "send", "ValueError: card of order # is void"),
            FailureCount(2, "send", "IntegrityError: key # exists"),
            FailureCount(2, "send", "mail.S3Error: HTTP 404\nrequest 1"),
            FailureCount(1, "bill", errors[0]),
            FailureCount(1, "send", "IntegrityError: no such table"),
            FailureCount(1, "send", "KeyError"),
        ]

    async def test_pending_jobs_are_listed_by_their_enqueue_time(self, ledger: Ledger, admin: JobAdmin) -> None:
        """The latest first."""
        async with db.scope():
            session = await db.session()
            await ledger.add(session, [NewJob(f"p{n}", b"{}", "send", "mail", n) for n in (1, 2)])
        assert [row.id for row in await admin.lines(JobFilter(State.PENDING), 10)] == ["p2", "p1"]


class TestRetry:
    async def test_a_retried_job_is_pending_and_keeps_its_history(self, ledger: Ledger, admin: JobAdmin) -> None:
        """Id and enqueue time stay, error, tries and end move into the history, and it is due for the relay at once."""
        await ledger.complete([FAILED._replace(started_at=5)])
        ended = (await row(admin))["finished_at"]
        retried, rejections = await admin.retry([Key("j1", 1_000)])
        assert rejections == []
        now = await row(admin)
        assert retried == [NewJob("j1", now["payload"], "send", "mail", 1_000)]
        assert Message.decode("j1", now["payload"]) == Message("j1", "send", (), {"to": "ann"}, 1_000, in_ledger=True)
        cleared = ("result", "error", "traceback", "started_at", "finished_at")
        assert (now["state"], now["tries"], [now[field] for field in cleared]) == ("pending", 0, [None] * 5)
        assert earlier_ends(now) == [{"error": "ValueError: no", "tries": 3, "finished_at": ended}]
        assert [row[1:] for row in await ledger.due((-1, ""), 10)] == [("j1", 1_000, "mail")]
        assert [found.expired for found in await ledger.unpublished([("j1", 1_000)])] == [False]

    async def test_a_job_can_be_retried_again_and_its_history_is_bounded(self, ledger: Ledger, admin: JobAdmin) -> None:
        """A retried job may also be done."""
        for tries in range(1, 24):
            await ledger.complete([FAILED._replace(tries=tries)])
            await admin.retry([Key("j1", 1_000)])
        assert [end["tries"] for end in earlier_ends(await row(admin))] == list(range(4, 24))
        async with db.scope():
            assert await ledger.mark_done(await db.session(), FAILED._replace(state=State.DONE, error=None)) is None
        assert (await row(admin))["state"] == "done"

    async def test_expires_counts_anew_from_a_retry(self, ledger: Ledger, admin: JobAdmin) -> None:
        """A job that was due long ago does not expire because it is retried."""
        async with db.scope():
            pending = NewJob("j1", DIRECT, "send", "mail", 1_000, due=5_000, expires=60_000)
            await ledger.add(await db.session(), [pending])
        await ledger.complete([FAILED])
        retried, _ = await admin.retry([Key("j1", 1_000)])
        assert retried[0].expires == 60_000
        assert [found.expired for found in await ledger.unpublished([("j1", 1_000)])] == [False]

    async def test_a_job_whose_id_is_pending_again_is_not_retried(self, ledger: Ledger, admin: JobAdmin) -> None:
        """The refusal names the reason. Other jobs are retried."""
        await ledger.complete([FAILED, FAILED._replace(enqueued_at=2_000), FAILED._replace(id="j2")])
        await ledger.complete([FAILED._replace(id="j3")])
        async with db.scope():
            await ledger.add(await db.session(), [NewJob("j2", DIRECT, "send", "mail", 3_000)])
        retried, rejections = await admin.retry(
            [Key("j1", 1_000), Key("j1", 2_000), Key("j2", 1_000), Key("j3", 1_000)]
        )
        assert [job.id for job in retried] == ["j1", "j3"]
        assert rejections == [Rejection(job_id, "another job of this id is pending") for job_id in ("j1", "j2")]
        assert [(found["enqueued_at"], found["state"]) for found in await admin.all_of("j1")] == [
            (2_000, "pending"),
            (1_000, "failed"),
        ]

    async def test_retry_and_discard_change_only_the_job_with_the_given_enqueue_time(
        self, ledger: Ledger, admin: JobAdmin
    ) -> None:
        """Other jobs of the id stay as they are."""
        await ledger.complete([FAILED, FAILED._replace(enqueued_at=2_000), FAILED._replace(enqueued_at=3_000)])
        assert len((await admin.retry([Key("j1", 2_000)]))[0]) == 1
        assert await admin.discard([Key("j1", 3_000)]) == []
        assert [found["state"] for found in await admin.all_of("j1")] == ["discarded", "pending", "failed"]

    async def test_a_job_that_is_no_longer_failed_is_not_retried(self, ledger: Ledger, admin: JobAdmin) -> None:
        """It was retried meanwhile, has committed after all, or is gone."""
        await ledger.complete([FAILED])
        await admin.retry([Key("j1", 1_000)])
        retried, rejections = await admin.retry([Key("j1", 1_000), Key("nobody", 1)])
        assert retried == []
        assert rejections == [Rejection(job_id, "its row has changed meanwhile") for job_id in ("j1", "nobody")]

    async def test_a_job_whose_payload_is_missing_unreadable_or_a_pickle_is_not_retried(
        self, ledger: Ledger, admin: JobAdmin
    ) -> None:
        """The refusal names the reason. A pickle is retried where pickles are accepted."""
        job = {"t": None, "f": "send", "a": (), "k": {"to": {1, 2}}, "et": 1_000}
        payloads = {"lost": None, "garbage": b"{", "pickled": pickle.dumps(job)}
        await ledger.complete([FAILED._replace(id=name, payload=payload) for name, payload in payloads.items()])
        keys = [Key(name, 1_000) for name in payloads]
        retried, rejections = await admin.retry(keys)
        why = {rejection.id: rejection.why for rejection in rejections}
        assert retried == []
        assert why["lost"] == "its arguments are unknown: they had expired, or the job never had any"
        assert why["garbage"].startswith("not JSON")
        assert why["pickled"].startswith("a pickle, which is not loaded")
        retried, rejections = await admin.retry(keys, accept_pickle=True)
        message = Message.decode("pickled", retried[0].payload, accept_pickle=True)
        assert (message.kwargs, message.in_ledger, len(rejections)) == ({"to": {1, 2}}, True, 2)

    @pytest.mark.usefixtures("postgres_database")
    async def test_a_job_whose_id_is_enqueued_during_its_retry_is_refused_and_others_are_retried(
        self, postgres: Observer
    ) -> None:
        """The retry waits for the transaction that takes the id."""
        ledger, admin = Ledger(), JobAdmin()
        await ledger.complete([FAILED, FAILED._replace(id="j2")])
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        async with db.scope():
            await ledger.add(await db.session(), [NewJob("j1", DIRECT, "send", "mail", 2_000)])
            retrying = asyncio.create_task(db.isolated(admin.retry, [Key("j1", 1_000), Key("j2", 1_000)]))
            await eventually(lambda: postgres.fetchval(waiting), equals=1)
        retried, rejections = await retrying
        assert [job.id for job in retried] == ["j2"]
        assert rejections == [Rejection("j1", "another job of this id is pending")]


class TestDiscard:
    async def test_a_discarded_job_keeps_its_error_loses_its_arguments_and_cannot_run_again(
        self, ledger: Ledger, admin: JobAdmin
    ) -> None:
        """Neither by an attempt nor by a retry."""
        await ledger.complete([FAILED, FAILED._replace(id="done", state=State.DONE)])
        rejections = await admin.discard([Key("j1", 1_000), Key("done", 1_000)])
        assert rejections == [Rejection("done", "its row has changed meanwhile")]
        now = await row(admin)
        assert (now["state"], now["error"], now["payload"]) == ("discarded", "ValueError: no", None)
        assert (await admin.retry([Key("j1", 1_000)]))[0] == []
        async with db.scope():
            known = await ledger.mark_done(await db.session(), FAILED._replace(state=State.DONE))
            await db.rollback()
        assert known is not None
        assert known.state is State.DISCARDED


@pytest.mark.usefixtures("postgres_database")
async def test_failed_jobs_are_found_by_their_index(postgres: Observer) -> None:
    """Among many done rows."""
    await postgres.execute(
        "INSERT INTO tandem_jobs (id, enqueued_at, task, queue, state, finished_at)"
        " SELECT g::text, g, 'send', 'mail', CASE WHEN g % 1000 = 0 THEN 'failed' ELSE 'done' END, g"
        " FROM generate_series(1, 50000) g"
    )
    await postgres.execute("ANALYZE tandem_jobs")
    admin = JobAdmin()
    assert len(await admin.keys(JobFilter(task="send"))) == 50
    async with db.scope():
        session = await db.session()
        asked = select(admin._jobs.c.id).where(admin._matches(JobFilter(task="send")))
        query = asked.compile(dialect=session.get_bind().dialect, compile_kwargs={"literal_binds": True})
        plan = str((await session.execute(text(f"EXPLAIN {query}"))).all())
    assert "tandem_jobs_failed" in plan
    assert "Seq Scan" not in plan
