"""Callbacks around the COMMIT: they belong to the transaction or savepoint that they were made in."""

import asyncio
import contextlib
import logging
from collections.abc import Callable

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

import db
from tests.db.conftest import INSERT, Count, insert
from tests.db.models import Note
from tests.servers import Observer
from tests.waiting import at_once

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def told() -> list[str]:
    """What the callbacks have said."""
    return []


def tell(told: list[str], what: str) -> Callable[[], None]:
    return lambda: told.append(what)


async def test_on_commit_runs_in_order_after_the_commit(told: list[str], rows: Count, postgres: Observer) -> None:
    """On-commit callbacks, plain and async, run in order once the row is there and the connection given back."""

    async def look() -> None:
        told.append(f"{await rows()} row, {await postgres.idle_in_transaction()} in transaction")

    async with db.scope():
        db.on_commit(tell(told, "first"))
        db.on_commit(look)
        await insert("a")
        assert told == []
    assert told == ["first", "1 row, 0 in transaction"]


async def test_no_callback_runs_after_a_rollback(told: list[str]) -> None:
    """No callback of either kind runs when the scope is rolled back."""

    async def before(_session: db.AsyncSession) -> None:
        told.append("before")

    with pytest.raises(ZeroDivisionError):
        async with db.scope():
            await insert("a")
            db.on_commit(tell(told, "on"))
            db.before_commit(before)
            raise ZeroDivisionError
    assert told == []


async def test_no_on_commit_runs_after_a_failed_commit(told: list[str], rows: Count) -> None:
    """No on-commit callback runs when the database refuses the COMMIT."""
    with pytest.raises(IntegrityError):
        async with db.scope():
            await (await db.session()).execute(text("INSERT INTO reply VALUES (404)"))
            await insert("a")
            db.on_commit(tell(told, "on"))
    assert told == []
    assert await rows() == 0


@pytest.mark.parametrize("error", [LookupError, SystemExit, KeyboardInterrupt, asyncio.CancelledError])
async def test_failing_on_commit_is_logged_and_the_others_run(
    told: list[str], rows: Count, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    """An on-commit callback that raises changes nothing for the caller, whose row is saved, nor for those after it."""

    def fail() -> None:
        raise error("nobody listens")

    with caplog.at_level(logging.ERROR, "db"):
        async with db.scope():
            await insert("a")
            db.on_commit(fail)
            db.on_commit(tell(told, "second"))
    assert await rows() == 1
    assert told == ["second"]
    assert "nobody listens" in caplog.text


async def test_on_commit_runs_in_a_scope_without_sessions(told: list[str]) -> None:
    """A scope that used no session still runs its on-commit callbacks."""
    async with db.scope():
        db.on_commit(tell(told, "on"))
    assert told == ["on"]


async def test_scope_is_over_for_on_commit(told: list[str]) -> None:
    """In an on-commit callback the scope has ended, and its session says so; a new scope works."""

    async def late() -> None:
        with pytest.raises(db.ScopeEndedError):
            await db.session()
        async with db.scope():
            await insert("late")
        told.append("late")

    async with db.scope():
        await insert("a")
        db.on_commit(late)
    assert told == ["late"]


async def test_before_commit_gets_the_session(rows: Count) -> None:
    """A before-commit callback gets the session, and its writes are part of the transaction."""

    async def audit(session: db.AsyncSession) -> None:
        await session.execute(INSERT, {"words": "audit"})

    async with db.scope():
        db.before_commit(audit)
        await insert("a")
    assert await rows() == 2


async def test_before_commit_opens_the_session_that_it_needs(rows: Count) -> None:
    """A before-commit callback that was made before any session was used is given one."""

    async def audit(session: db.AsyncSession) -> None:
        await session.execute(INSERT, {"words": "audit"})

    async with db.scope():
        db.before_commit(audit)
    assert await rows() == 1


async def test_before_commit_runs_after_pending_objects_are_flushed() -> None:
    """What the body has only added is in the database when a before-commit callback runs; what that adds is saved."""
    seen: list[int] = []

    async def count(session: db.AsyncSession) -> None:
        seen.append(int(await session.scalar(text("SELECT count(*) FROM note")) or 0))
        session.add(Note(words="late"))

    async with db.scope():
        session = await db.session()
        session.add(Note(words="a"))
        db.before_commit(count)
    assert seen == [1]
    async with db.scope():
        assert await (await db.session()).scalar(text("SELECT count(*) FROM note")) == 2


async def test_before_commit_that_raises_refuses_the_commit(told: list[str], rows: Count) -> None:
    """A before-commit callback that raises refuses the commit: its error comes out, nothing is saved or told."""

    async def refuse(_session: db.AsyncSession) -> None:
        raise ValueError("over budget")

    with pytest.raises(ValueError, match="over budget"):
        async with db.scope():
            await insert("a")
            db.on_commit(tell(told, "on"))
            db.before_commit(refuse)
    assert await rows() == 0
    assert told == []


async def test_refusing_before_commit_is_called_again_at_the_next_commit(rows: Count) -> None:
    """A callback that refused an early commit is asked again at the next one, which cannot slip past it."""
    budget = 0

    async def check(_session: db.AsyncSession) -> None:
        if budget == 0:
            raise ValueError("over budget")

    async with db.scope():
        await insert("a")
        db.before_commit(check)
        for _ in range(2):
            with pytest.raises(ValueError, match="over budget"):
                await db.commit()
            assert await rows() == 0
        budget = 1
        await db.commit()
        assert await rows() == 1
        budget = 0
        await insert("b")
    assert await rows() == 2


async def test_before_commit_may_register_more_callbacks(told: list[str]) -> None:
    """A before-commit callback may register others, of both kinds; each runs once."""

    async def second(_session: db.AsyncSession) -> None:
        told.append("second")

    async def first(_session: db.AsyncSession) -> None:
        told.append("first")
        db.before_commit(second)
        db.on_commit(tell(told, "on"))

    async with db.scope():
        await insert("a")
        db.before_commit(first)
    assert told == ["first", "second", "on"]


async def test_before_commit_can_be_cancelled(rows: Count, postgres: Observer) -> None:
    """A cancellation while a before-commit callback runs takes effect at once: no COMMIT was sent, nothing is saved."""
    entered = asyncio.Event()

    async def hang(_session: db.AsyncSession) -> None:
        entered.set()
        await asyncio.Event().wait()

    async def work() -> None:
        async with db.scope():
            await insert("a")
            db.before_commit(hang)

    task = asyncio.create_task(work())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await at_once(task)
    assert await rows() == 0
    assert await postgres.idle_in_transaction() == 0


async def test_callbacks_vanish_with_the_rollback_of_their_savepoint(told: list[str]) -> None:
    """D17: callbacks made in a savepoint go with its rollback; those made around it stay."""

    async def before(_session: db.AsyncSession) -> None:
        told.append("before, inside")

    async with db.scope():
        session = await db.session()
        await insert("a")
        db.on_commit(tell(told, "around"))
        with pytest.raises(ZeroDivisionError):
            async with session.begin_nested():
                db.on_commit(tell(told, "inside"))
                db.before_commit(before)
                raise ZeroDivisionError
        db.on_commit(tell(told, "after"))
    assert told == ["around", "after"]


async def test_callbacks_of_a_released_savepoint_run_at_the_commit(told: list[str]) -> None:
    """Callbacks made in a savepoint that was released run with the commit, in the order of their making."""
    async with db.scope():
        session = await db.session()
        db.on_commit(tell(told, "1"))
        async with session.begin_nested():
            db.on_commit(tell(told, "2"))
            async with session.begin_nested():
                db.on_commit(tell(told, "3"))
        db.on_commit(tell(told, "4"))
        assert told == []
    assert told == ["1", "2", "3", "4"]


async def test_callbacks_of_a_released_savepoint_vanish_with_the_enclosing_one(told: list[str]) -> None:
    """A released savepoint's callbacks belong to the enclosing one, and go with that one's rollback."""
    async with db.scope():
        session = await db.session()
        with pytest.raises(ZeroDivisionError):
            async with session.begin_nested():
                db.on_commit(tell(told, "outer"))
                async with session.begin_nested():
                    db.on_commit(tell(told, "inner"))
                raise ZeroDivisionError
    assert told == []


async def test_rollback_of_an_inner_savepoint_keeps_the_outer_callbacks(told: list[str]) -> None:
    """The rollback of an inner savepoint leaves the outer one's callbacks."""
    async with db.scope():
        session = await db.session()
        async with session.begin_nested():
            db.on_commit(tell(told, "outer"))
            with contextlib.suppress(ZeroDivisionError):
                async with session.begin_nested():
                    db.on_commit(tell(told, "inner"))
                    raise ZeroDivisionError
    assert told == ["outer"]


async def test_callbacks_vanish_with_a_savepoint_that_a_failed_flush_rolled_back(told: list[str], rows: Count) -> None:
    """A savepoint that a failed flush has rolled back takes its callbacks, though its block ends without an error."""
    async with db.scope():
        session = await db.session()
        session.add(Note(words="a"))
        await session.flush()
        with pytest.raises(db.PoisonedTransactionError):
            async with session.begin_nested():
                db.on_commit(tell(told, "inside"))
                session.add(Note(words="b"))
                await session.flush()
                session.add(Note(words="a"))
                with contextlib.suppress(IntegrityError):
                    await session.flush()
    assert told == []
    assert await rows() == 1


async def test_early_commit_runs_its_callbacks(told: list[str]) -> None:
    """An early commit runs its callbacks. A later rollback does not undo that."""
    with pytest.raises(ZeroDivisionError):
        async with db.scope():
            await insert("a")
            db.on_commit(tell(told, "a"))
            await db.commit()
            assert told == ["a"]
            await insert("b")
            db.on_commit(tell(told, "b"))
            raise ZeroDivisionError
    assert told == ["a"]


async def test_early_commit_inside_a_savepoint_runs_its_callbacks(told: list[str], rows: Count) -> None:
    """An early commit in the middle of a savepoint commits that, too, and runs its callbacks."""
    async with db.scope():
        session = await db.session()
        await insert("a")
        savepoint = await session.begin_nested()
        await insert("b")
        db.on_commit(tell(told, "inside"))
        await session.commit()
        assert told == ["inside"]
        assert await rows() == 2
        assert not savepoint.is_active


@pytest.mark.parametrize("end", ["db.rollback", "db.close", "session.rollback", "session.close", "run_sync"])
async def test_callbacks_vanish_with_an_early_rollback_or_close(told: list[str], end: str, rows: Count) -> None:
    """Callbacks vanish with an early rollback or close, however it is asked for; later ones run."""
    async with db.scope():
        session = await db.session()
        await insert("a")
        db.on_commit(tell(told, "a"))
        match end:
            case "db.rollback":
                await db.rollback()
            case "db.close":
                await db.close()
            case "session.rollback":
                await session.rollback()
            case "session.close":
                await session.close()
            case "run_sync":
                await session.run_sync(lambda inner: inner.rollback())
        await insert("b")
        db.on_commit(tell(told, "b"))
    assert told == ["b"]
    assert await rows() == 1


async def test_callbacks_vanish_with_a_close_that_fails(told: list[str], database: db.Database) -> None:
    """Callbacks vanish with an early close also where a session class of the user's own fails in it."""

    class Grumpy(AsyncSession):
        has_failed = False

        async def close(self) -> None:
            if not self.has_failed:
                self.has_failed = True
                raise ConnectionError("not today")
            await super().close()

    own = db.Database(database.url, sessions=lambda bind: async_sessionmaker(bind, class_=Grumpy))
    async with db.scope():
        session = await db.session(own)
        db.on_commit(tell(told, "a"), own)
        with pytest.raises(ConnectionError):
            await db.close(own)
        await session.execute(INSERT, {"words": "b"})
    assert told == []
    await own.dispose()


async def test_callbacks_without_a_session_vanish_with_an_early_rollback(told: list[str]) -> None:
    """Callbacks made before any session was used vanish with an early rollback; an early commit runs them."""
    async with db.scope():
        db.on_commit(tell(told, "a"))
        await db.rollback()
        db.on_commit(tell(told, "b"))
        await db.commit()
        assert told == ["b"]
    assert told == ["b"]


async def test_batch_callback_runs_once_with_the_committed_items(told: list[str]) -> None:
    """A batch callback runs once, with the items of all who asked for it and were committed."""

    def publish(items: list[str]) -> None:
        told.append("+".join(items))

    async with db.scope() as here:
        session = await db.session()
        database = db.default_database()
        here.on_commit_batch(publish, ["a"], database)
        db.on_commit(tell(told, "between"))
        async with session.begin_nested():
            here.on_commit_batch(publish, ["b", "c"], database)
        with contextlib.suppress(ZeroDivisionError):
            async with session.begin_nested():
                here.on_commit_batch(publish, ["d"], database)
                raise ZeroDivisionError
    assert told == ["a+b+c", "between"]


async def test_cancellation_waits_for_on_commit(told: list[str], rows: Count) -> None:
    """A cancellation during an on-commit callback waits for all callbacks of the COMMIT."""
    entered = asyncio.Event()

    async def publish() -> None:
        entered.set()
        await asyncio.sleep(0.05)
        told.append("published")

    async def work() -> str:
        async with db.scope():
            await insert("a")
            db.on_commit(publish)
        return "done"

    task = asyncio.create_task(work())
    await entered.wait()
    task.cancel()
    assert await task == "done"
    assert told == ["published"]
    assert await rows() == 1
