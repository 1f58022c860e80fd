"""Cancellation of sessions: a COMMIT that was sent is waited for; everything else ends at once and leaves nothing."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import anyio
import pytest
from sqlalchemy import text

import db
from db.aio.cancellation import in_own_task, shielded
from tests.commits import HeldCommits, held_commits
from tests.db.conftest import Count, insert
from tests.db.models import Note
from tests.servers import Observer
from tests.stopwatch import Stopwatch
from tests.waiting import AT_ONCE, at_once, eventually

Way = Callable[[], Awaitable[str]]


async def leaving_a_scope() -> str:
    async with db.scope():
        await insert("a")
    return "saved"


async def bare_commit() -> str:
    async with db.scope():
        session = await db.session()
        await insert("a")
        await session.commit()
        return "saved"


async def begin_block() -> str:
    async with db.scope():
        session = await db.session()
        async with session.begin():
            await insert("a")
        return "saved"


async def early_commit() -> str:
    async with db.scope():
        await insert("a")
        await db.commit()
        return "saved"


async def atomic_block() -> str:
    async with db.atomic() as session:
        await session.execute(text("INSERT INTO note (words) VALUES ('a')"))
    return "saved"


async def independent_session() -> str:
    async with db.independent() as session:
        await session.execute(text("INSERT INTO note (words) VALUES ('a')"))
        await session.commit()
        return "saved"


async def isolated_work() -> str:
    await db.isolated(insert, "a")
    return "saved"


WAYS_TO_COMMIT: list[Way] = [
    leaving_a_scope,
    bare_commit,
    begin_block,
    early_commit,
    atomic_block,
    independent_session,
    isolated_work,
]


@pytest.fixture
async def commits(database: db.Database, postgres: Observer) -> AsyncIterator[HeldCommits]:
    """Every COMMIT of a note stays in the server until it is let go."""
    async with held_commits(postgres, "note") as commits:
        yield commits


async def cancelled(way: Way, commits: HeldCommits) -> str:
    """Cancel once, in the COMMIT."""
    return await in_the_commit(commits, way(), lambda task: task.cancel())


async def cancelled_often(way: Way, commits: HeldCommits) -> str:
    """Cancel again and again, in the COMMIT."""
    task = asyncio.ensure_future(_wait_for(way()))
    await commits.begun()
    for turn in range(10):
        task.cancel()
        await asyncio.sleep(turn / 1000)
    await commits.let_go()
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    return await task


async def waited_for(way: Way, commits: HeldCommits) -> str:
    """`asyncio.wait_for` whose time is up in the COMMIT."""
    task = asyncio.ensure_future(_wait_for(way()))
    await commits.begun()
    waiting = asyncio.ensure_future(asyncio.wait_for(task, 0.01))
    await eventually(task.cancelling)
    await commits.let_go()
    return await waiting


async def timed_out(way: Way, commits: HeldCommits) -> str:
    """`asyncio.timeout` whose time is up in the COMMIT."""
    limit = asyncio.timeout(None)

    async def work() -> str:
        async with limit:
            return await way()

    return await in_the_commit(commits, work(), lambda _: limit.reschedule(0))


async def moved_on(way: Way, commits: HeldCommits) -> str:
    """anyio, which cancels at every turn of the loop."""
    limit = anyio.CancelScope()

    async def work() -> str:
        with limit:
            return await way()
        return "moved on"

    return await in_the_commit(commits, work(), lambda _: limit.cancel())


async def shielded_by_asyncio(way: Way, commits: HeldCommits) -> str:
    """The waiter of a shielded task is cancelled in the COMMIT; what counts is what the task says."""
    task = asyncio.ensure_future(way())
    with pytest.raises(asyncio.CancelledError):
        await in_the_commit(commits, asyncio.shield(task), lambda waiter: waiter.cancel())
    return await task


async def in_a_task_group(way: Way, commits: HeldCommits) -> str:
    """A sibling fails in the COMMIT, and the group cancels."""
    tasks: list[asyncio.Task[str]] = []
    failing = asyncio.Event()

    async def work() -> str:
        with contextlib.suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                tasks.append(group.create_task(_wait_for(way())))
                await failing.wait()
                raise LookupError
        return await tasks[0]

    working = asyncio.ensure_future(work())
    await commits.begun()
    failing.set()
    await eventually(tasks[0].cancelling)
    await commits.let_go()
    return await working


async def in_the_commit(
    commits: HeldCommits, work: Awaitable[str], cancel: Callable[["asyncio.Task[str]"], object]
) -> str:
    """Do the work, and `cancel` it in its COMMIT, which goes on when the cancellation has arrived."""
    task = asyncio.ensure_future(_wait_for(work))
    await commits.begun()
    cancel(task)
    await eventually(task.cancelling)
    await commits.let_go()
    return await task


async def _wait_for(way: Awaitable[str]) -> str:
    return await way


WAYS_TO_CANCEL = [cancelled, cancelled_often, waited_for, timed_out, moved_on, shielded_by_asyncio, in_a_task_group]


@pytest.mark.parametrize("way", WAYS_TO_COMMIT)
@pytest.mark.parametrize("cancel", WAYS_TO_CANCEL)
async def test_commit_is_reported_as_done_however_it_is_cancelled(
    way: Way,
    cancel: Callable[[Way, HeldCommits], Awaitable[str]],
    commits: HeldCommits,
    postgres: Observer,
    rows: Count,
) -> None:
    """A3: however the work commits and is cancelled in the COMMIT, it is reported as done, and the row is saved."""
    assert await cancel(way, commits) == "saved"
    assert await rows() == 1
    assert await postgres.idle_in_transaction() == 0


@pytest.mark.parametrize("way", WAYS_TO_COMMIT)
async def test_refused_commit_is_an_error_for_a_cancelled_caller(
    way: Way, database: db.Database, postgres: Observer, rows: Count
) -> None:
    """A3, the opposite case: a refused COMMIT is an error for a caller that was cancelled meanwhile."""
    async with held_commits(postgres, "note", then="RAISE EXCEPTION 'refused'") as commits:
        with pytest.raises(Exception, match="refused"):
            await cancelled_often(way, commits)
    assert await rows() == 0
    assert await postgres.idle_in_transaction() == 0


@pytest.mark.parametrize("way", WAYS_TO_COMMIT)
async def test_work_cancelled_before_its_commit_saves_nothing(
    way: Way, database: db.Database, postgres: Observer, rows: Count
) -> None:
    """Work that is cancelled before its COMMIT is sent is cancelled, and saves nothing."""
    async with db.independent() as session:
        await session.execute(text("LOCK TABLE note IN ACCESS EXCLUSIVE MODE"))
        task = asyncio.ensure_future(way())
        await eventually(lambda: postgres.backends("active"), equals=1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await at_once(task)
    await eventually(lambda: postgres.backends("active"), equals=0)
    assert await rows() == 0
    await eventually(postgres.idle_in_transaction, equals=0)


async def test_ending_scope_can_be_cancelled_before_its_commit_is_sent(
    database: db.Database, postgres: Observer, rows: Count
) -> None:
    """A scope whose last flush waits for a lock has sent no COMMIT yet, so it can be cancelled."""

    async def work() -> None:
        async with db.scope():
            (await db.session()).add(Note(words="a"))

    async with db.independent() as session:
        await session.execute(text("LOCK TABLE note IN ACCESS EXCLUSIVE MODE"))
        task = asyncio.ensure_future(work())
        await eventually(lambda: postgres.backends("active"), equals=1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await at_once(task)
    await eventually(lambda: postgres.backends("active"), equals=0)
    assert await rows() == 0


async def test_cancellation_during_a_commit_ends_the_next_await(commits: HeldCommits, rows: Count) -> None:
    """A cancellation that arrived in the COMMIT is not lost: it ends the caller at its next await."""
    reached: list[str] = []

    async def work() -> None:
        await leaving_a_scope()
        reached.append("told of the success")
        await asyncio.sleep(30)
        reached.append("went on")

    task = asyncio.create_task(work())
    await commits.begun()
    task.cancel("because")
    await commits.let_go()
    with pytest.raises(asyncio.CancelledError, match="because"):
        await task
    assert reached == ["told of the success"]
    assert task.cancelling() == 1
    assert await rows() == 1


async def test_cancellation_during_a_rollback_ends_the_next_await(database: db.Database, postgres: Observer) -> None:
    """A cancellation that arrived during a rollback is not lost if the caller handles the error that caused it."""
    asked = asyncio.Event()

    async def work() -> None:
        with contextlib.suppress(ZeroDivisionError):
            async with db.scope():
                await insert("a")
                asyncio.get_running_loop().call_soon(asked.set)
                raise ZeroDivisionError
        await asyncio.sleep(10)

    task = asyncio.create_task(work())
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 2)


async def test_timeout_in_a_commit_leaves_no_stray_cancellation(commits: HeldCommits, rows: Count) -> None:
    """An `asyncio.timeout` whose time was up in the COMMIT leaves no cancellation for what comes after it."""
    limit = asyncio.timeout(None)

    async def work() -> str:
        async with limit:
            await leaving_a_scope()
        return await undisturbed()

    assert await in_the_commit(commits, work(), lambda _: limit.reschedule(0)) == "undisturbed"
    assert limit.expired()
    assert await rows() == 1


async def test_anyio_scope_in_a_commit_leaves_no_stray_cancellation(commits: HeldCommits, rows: Count) -> None:
    """An anyio cancel scope whose time was up in the COMMIT leaves no cancellation either."""
    limit = anyio.CancelScope()

    async def work() -> str:
        with limit:
            await leaving_a_scope()
        return await undisturbed()

    assert await in_the_commit(commits, work(), lambda _: limit.cancel()) == "undisturbed"
    assert await rows() == 1


async def undisturbed() -> str:
    for _ in range(3):
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    return "undisturbed"


async def test_anyio_cancels_what_follows_the_commit(commits: HeldCommits, rows: Count) -> None:
    """Under anyio, too, what comes after the COMMIT is cancelled, and its scope recognises its own cancellation."""
    limit = anyio.CancelScope()

    async def work() -> str:
        with limit:
            await leaving_a_scope()
            await asyncio.sleep(30)
        return "ended"

    assert await in_the_commit(commits, work(), lambda _: limit.cancel()) == "ended"
    assert limit.cancelled_caught
    assert await rows() == 1


async def test_cancellation_pending_before_a_commit_is_not_lost(database: db.Database, rows: Count) -> None:
    """A task that had cancelled itself before it commits gets its cancellation after the COMMIT."""

    async def work() -> None:
        async with db.scope():
            await insert("a")
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        await asyncio.sleep(10)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asyncio.create_task(work()), 2)
    assert await rows() == 1


async def test_task_cancelled_before_its_first_step_commits_nothing(
    database: db.Database, rows: Count, postgres: Observer
) -> None:
    """A task that would commit and is cancelled before its first step commits nothing; the session goes on."""
    async with db.scope():
        session = await db.session()
        await insert("a")
        task = asyncio.create_task(session.commit())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await rows() == 0
        await db.commit()
        assert await rows() == 1
        await insert("b")
    assert await rows() == 2


async def in_a_task(work: Callable[[], Coroutine[Any, Any, None]], postgres: Observer) -> None:
    """Cancel three times, at once and during the clean-up."""
    task = asyncio.ensure_future(work())
    await eventually(lambda: postgres.backends("active"), equals=1)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task


async def under_anyio(work: Callable[[], Coroutine[Any, Any, None]], postgres: Observer) -> None:
    """Cancel at every turn of the loop."""
    async with anyio.create_task_group() as group:
        group.start_soon(work)
        await eventually(lambda: postgres.backends("active"), equals=1)
        group.cancel_scope.cancel()


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("cancel", [in_a_task, under_anyio])
async def test_cancelled_statement_ends_on_the_server(
    cancel: Callable[[Callable[[], Coroutine[Any, Any, None]], Observer], Awaitable[None]],
    private: bool,
    database: db.Database,
    postgres: Observer,
    rows: Count,
) -> None:
    """B1: after three cancellations in mid-statement no backend is active, no lock is held, and nothing is saved."""

    async def sleep_on_a_lock() -> None:
        async with db.scope():
            await insert("a")
            await (await db.session()).execute(text("SELECT pg_sleep(30)"))

    async def work() -> None:
        await (in_own_task(sleep_on_a_lock()) if private else sleep_on_a_lock())

    await cancel(work, postgres)
    watch = Stopwatch()
    # The same words: their unique index has them locked until the first transaction is gone.
    async with db.scope():
        await insert("a")
    assert watch.seconds_running < AT_ONCE
    await eventually(lambda: postgres.backends("active"), timeout=AT_ONCE, equals=0)
    await eventually(postgres.idle_in_transaction, equals=0)
    assert await rows() == 1


async def test_cancellation_while_connecting_leaves_no_backend(database: db.Database, postgres: Observer) -> None:
    """A cancellation while the first statement still waits for its connection leaves no backend behind."""
    for turns in range(12):

        async def work() -> None:
            async with db.scope():
                await insert("a")
                await asyncio.sleep(10)

        task = asyncio.create_task(work())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await database.dispose()
        await eventually(postgres.backends, equals=0)


async def test_clean_up_of_cancelled_work_is_not_slowed_by_anyio(database: db.Database) -> None:
    """B2: work with 50 ms of clean-up returns at once under anyio, though that cancels at every turn."""

    async def clean_up() -> str:
        await asyncio.sleep(0.05)
        return "clean"

    for protected in (shielded, in_own_task):
        watch = Stopwatch()
        results: list[str] = []

        async def work() -> None:
            try:
                await asyncio.sleep(10)
            finally:
                results.append(await protected(clean_up()))  # noqa: B023 - called within the turn

        with anyio.move_on_after(0.02):
            if protected is shielded:
                await work()
            else:
                await in_own_task(work())
        assert results == ["clean"]
        assert watch.seconds_running < AT_ONCE


async def test_double_cancellation_leaves_no_database_in_a_transaction(
    database: db.Database, database_url: str, postgres: Observer
) -> None:
    """B7: two sessions, cancelled twice while the first is being closed: neither is left in a transaction."""
    other = db.Database(database_url, name="other")

    async def work() -> None:
        async with db.scope():
            await insert("a")
            await (await db.session(other)).execute(text("INSERT INTO note (words) VALUES ('b')"))
            await asyncio.sleep(10)

    for turns in range(8):
        task = asyncio.create_task(work())
        await eventually(postgres.idle_in_transaction, equals=2)
        task.cancel()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await eventually(postgres.idle_in_transaction, equals=0)
    await other.dispose()


async def test_swallowed_timeout_of_a_statement_refuses_the_commit(
    database: db.Database, postgres: Observer, rows: Count
) -> None:
    """A statement whose time limit the body swallowed took the connection with it: leaving the scope is an error."""
    with pytest.raises(db.PoisonedTransactionError):
        async with db.scope():
            await insert("a")
            session = await db.session()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(session.execute(text("SELECT pg_sleep(30)")), 0.1)
    assert await rows() == 0
    await eventually(lambda: postgres.backends("active"), equals=0)
    await eventually(postgres.idle_in_transaction, equals=0)


async def test_only_the_first_cancellation_reaches_work_in_its_own_task() -> None:
    """`in_own_task`: the work sees one cancellation, cleans up in peace, and its own word is the result."""
    seen: list[str] = []

    async def work() -> str:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            seen.append("cancelled")
        await asyncio.sleep(0.05)
        return "clean"

    task = asyncio.create_task(in_own_task(work()))
    await asyncio.sleep(0.01)
    while not task.done():
        task.cancel()
        await asyncio.sleep(0.001)
    assert await task == "clean"
    assert seen == ["cancelled"]


async def test_error_of_shielded_work_is_raised_to_the_caller() -> None:
    """The caller gets the error of the shielded work."""

    async def fail() -> None:
        raise LookupError

    for protected in (shielded, in_own_task):
        with pytest.raises(LookupError):
            await protected(fail())
