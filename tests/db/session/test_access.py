"""One user of a session at a time, on the right thread, and none after the end."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.orm import object_session
from sqlalchemy.util import greenlet_spawn

import db
from db.session.access import LoopAccess, SessionAccess, ThreadAccess
from tests.commits import held_commits
from tests.db.conftest import INSERT, Count, insert
from tests.db.models import Comment, Note
from tests.servers import Observer
from tests.stopwatch import Stopwatch
from tests.waiting import AT_ONCE, eventually

pytestmark = pytest.mark.usefixtures("database")

SLEEP = text("SELECT pg_sleep(0.05)")
Operation = Callable[[db.AsyncSession], Awaitable[Any]]


async def add_and_flush(session: db.AsyncSession) -> None:
    session.add(Note(words="a"))
    await session.flush()


async def stream_all(session: db.AsyncSession) -> None:
    async for _ in await session.stream(SLEEP):
        pass


async def run_sync(session: db.AsyncSession) -> None:
    await session.run_sync(lambda inner: inner.execute(SLEEP))


async def begin_nested(session: db.AsyncSession) -> None:
    async with session.begin_nested():
        await session.execute(SLEEP)


OPERATIONS: dict[str, Operation] = {
    "execute": lambda session: session.execute(SLEEP),
    "scalar": lambda session: session.scalar(SLEEP),
    "scalars": lambda session: session.scalars(SLEEP),
    "get": lambda session: session.get(Note, 1),
    "flush": add_and_flush,
    "stream": stream_all,
    "stream_scalars": lambda session: session.stream_scalars(SLEEP),
    "run_sync": run_sync,
    "connection": lambda session: session.connection(),
    "merge": lambda session: session.merge(Note(id=1, words="a")),
    "begin_nested": begin_nested,
}


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
async def test_concurrent_statements_on_one_session_are_refused(
    operation: Operation, warm: bool, postgres: Observer
) -> None:
    """C1: three coroutines at once on one session: one works, the others get the named error, cold or warm."""
    with pytest.raises(ZeroDivisionError):
        async with db.scope():
            session = await db.session()
            if warm:
                await session.execute(SLEEP)
            results = await asyncio.gather(*(operation(session) for _ in range(3)), return_exceptions=True)
            if operation is OPERATIONS["connection"] and warm:
                # Nothing is in flight when a connection is there already.
                assert not any(isinstance(result, BaseException) for result in results)
            else:
                errors = [result for result in results if isinstance(result, BaseException)]
                assert [type(error) for error in errors] == [db.ConcurrentUseError] * 2, errors
                assert "db.isolated(fn, *args)" in str(errors[0])
            assert await session.scalar(text("SELECT 1")) == 1
            raise ZeroDivisionError
    assert await postgres.idle_in_transaction() == 0


async def test_concurrent_operations_of_different_kinds_are_refused() -> None:
    """C1: different operations collide like alike ones, also with an early end and with `begin`."""
    async with db.scope():
        session = await db.session()
        sleeping = asyncio.create_task(session.scalar(text("SELECT 7 FROM pg_sleep(0.3)")))
        await asyncio.sleep(0)
        others: list[Callable[[], Awaitable[Any]]] = [
            lambda: session.get(Note, 1),
            session.commit,
            session.rollback,
            session.close,
            session.begin_nested().start,
            db.commit,
            db.rollback,
            db.close,
        ]
        for other in others:
            with pytest.raises(db.ConcurrentUseError):
                await other()
        assert await sleeping == 7


async def test_fetching_a_stream_during_another_statement_is_refused() -> None:
    """C1: a coroutine that fetches from a stream while another's statement is in flight gets the named error."""
    async with db.scope():
        session = await db.session()
        rows = await session.stream(text("SELECT generate_series(1, 5000)"), execution_options={"max_row_buffer": 10})
        assert (await rows.fetchone()) is not None
        sleeping = asyncio.create_task(session.scalar(text("SELECT 7 FROM pg_sleep(0.3)")))
        await asyncio.sleep(0.05)
        with pytest.raises(db.ConcurrentUseError):
            await rows.fetchall()
        assert await sleeping == 7


async def test_concurrent_lazy_loads_are_refused(postgres: Observer) -> None:
    """C1: `awaitable_attrs` of two objects of one session collide as well, instead of now and then."""
    await postgres.execute("INSERT INTO note (words) VALUES ('a'), ('b')")
    await postgres.execute("INSERT INTO comment (note_id) VALUES (1), (2)")
    async with db.scope():
        session = await db.session()
        one, two = (await session.scalars(select(Note).order_by(Note.id))).all()
        results = await asyncio.gather(
            one.awaitable_attrs.comments, two.awaitable_attrs.comments, return_exceptions=True
        )
        assert [type(result) for result in results].count(db.ConcurrentUseError) == 1, results
        assert len(await two.awaitable_attrs.comments) == 1


async def test_children_that_take_turns_may_share_a_session(rows: Count) -> None:
    """Child tasks that take turns, and operations within operations, are no concurrent use."""
    async with db.scope():
        for number in range(3):
            await asyncio.create_task(insert(str(number)))
        session = await db.session()
        session.add(Note(words="with autoflush"))
        assert len((await session.scalars(select(Note))).all()) == 4
    assert await rows() == 4


async def test_scope_left_during_a_childs_statement_saves_nothing(rows: Count, postgres: Observer) -> None:
    """A scope that is left while a child's statement is in flight cannot be committed: named error, nothing saved."""
    with pytest.raises(db.ConcurrentUseError):
        async with db.scope():
            await insert("a")
            child = asyncio.create_task((await db.session()).execute(text("SELECT pg_sleep(30)")))
            await eventually(lambda: postgres.backends("active"), equals=1)
    with pytest.raises(db.ScopeEndedError):
        await child
    assert await rows() == 0
    await eventually(lambda: postgres.backends("active"), equals=0)
    assert await postgres.idle_in_transaction() == 0


@pytest.mark.parametrize("block", ["scope", "begin", "begin_nested", "atomic"])
async def test_failing_child_stops_its_siblings_and_saves_nothing(block: str, rows: Count, postgres: Observer) -> None:
    """C2: gather(insert, raise, late insert): the first error comes out, 0 rows, nothing left in a transaction, and
    no child hangs."""
    late: list[asyncio.Task[Any]] = []

    async def children() -> None:
        session = await db.session()

        async def fail() -> None:
            await eventually(lambda: postgres.backends("active"), equals=1)
            raise ValueError("the first error")

        async def insert_late() -> None:
            await asyncio.sleep(0.5)
            await insert("late")

        await insert("a")
        late.append(asyncio.create_task(session.execute(text("SELECT pg_sleep(30)"))))
        late.append(asyncio.create_task(insert_late()))
        await asyncio.gather(*late, fail())

    watch = Stopwatch()
    with pytest.raises(ValueError, match="the first error"):
        async with db.scope():
            session = await db.session()
            match block:
                case "scope":
                    await children()
                case "begin":
                    async with session.begin():
                        await children()
                case "begin_nested":
                    async with session.begin_nested():
                        await children()
                case "atomic":
                    async with db.atomic():
                        await children()
    assert watch.seconds_running < AT_ONCE
    await eventually(lambda: postgres.backends("active"), equals=0)
    await eventually(postgres.idle_in_transaction, equals=0)
    errors = await asyncio.gather(*late, return_exceptions=True)
    assert all(isinstance(error, db.ScopeError) for error in errors), errors
    assert await rows() == 0


async def test_sibling_stopped_in_a_savepoint_loses_the_transaction(rows: Count, postgres: Observer) -> None:
    """If the error of a savepoint with a sibling in flight is swallowed, the scope does not pass for a success."""
    with pytest.raises((db.PoisonedTransactionError, db.ConcurrentUseError)):
        async with db.scope():
            session = await db.session()
            await insert("a")
            sibling = asyncio.create_task(session.execute(text("SELECT pg_sleep(30)")))
            await eventually(lambda: postgres.backends("active"), equals=1)
            with contextlib.suppress(ZeroDivisionError):
                async with _savepoint_without_a_statement(session):
                    raise ZeroDivisionError
    with pytest.raises(db.ScopeError):
        await sibling
    assert await rows() == 0


def _savepoint_without_a_statement(session: db.AsyncSession) -> Any:
    return session.begin_nested()


async def test_child_stopped_and_cancelled_at_once_ends_as_cancelled(postgres: Observer) -> None:
    """A child whose statement the scope's end stops, and that is cancelled at the same time, ends as cancelled."""
    with contextlib.suppress(ZeroDivisionError):
        async with db.scope():
            session = await db.session()
            child = asyncio.create_task(session.execute(text("SELECT pg_sleep(30)")))
            await eventually(lambda: postgres.backends("active"), equals=1)
            asyncio.get_running_loop().call_soon(child.cancel)
            raise ZeroDivisionError
    with pytest.raises((asyncio.CancelledError, db.ScopeEndedError)):
        await child


async def test_stopped_child_gets_an_error_and_can_go_on(postgres: Observer) -> None:
    """A child whose statement the scope's end stops gets a named error, and can go on with other things."""
    gone_on: list[int] = []

    async def child() -> None:
        session = await db.session()
        with pytest.raises(db.ScopeEndedError, match=r"db\.isolated"):
            await session.execute(text("SELECT pg_sleep(30)"))
        task = asyncio.current_task()
        assert task is not None
        gone_on.append(task.cancelling())
        await asyncio.sleep(0)

    with contextlib.suppress(ZeroDivisionError):
        async with db.scope():
            await insert("a")
            task = asyncio.create_task(child())
            await eventually(lambda: postgres.backends("active"), equals=1)
            raise ZeroDivisionError
    await task
    assert gone_on == [0]


async def test_failing_scope_waits_for_a_childs_commit(postgres: Observer, rows: Count) -> None:
    """A scope that fails while a child's COMMIT is in the server waits for it, and the child is told the truth."""
    async with held_commits(postgres, "note") as commits:
        with contextlib.suppress(ZeroDivisionError):
            async with db.scope():
                await insert("a")
                child = asyncio.create_task(db.commit())
                await commits.begun()
                letting_go = asyncio.create_task(commits.let_go())
                raise ZeroDivisionError
        await letting_go
    await child
    assert await rows() == 1


@pytest.mark.parametrize("kind", [LoopAccess, ThreadAccess])
async def test_everyone_who_waits_for_a_commit_goes_on_after_it(kind: type[SessionAccess]) -> None:
    """All who would end a transaction whose COMMIT is in the server are let go on when it is over."""
    access, loop, begun, go_on = kind(), asyncio.get_running_loop(), threading.Event(), asyncio.Event()

    async def commit() -> None:
        with access.transaction_end():
            begun.set()
            await go_on.wait()

    def commit_in_thread() -> None:
        with access.transaction_end():
            begun.set()
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()

    committing = asyncio.create_task(commit() if kind is LoopAccess else asyncio.to_thread(commit_in_thread))
    await eventually(begun.is_set)
    waiting = [asyncio.create_task(access.cancel_running(ZeroDivisionError())) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(each.done() for each in waiting)
    go_on.set()
    assert await asyncio.wait_for(asyncio.gather(*waiting), 10) == [True] * 3
    await committing


async def test_adding_an_object_after_the_end_is_refused(rows: Count, postgres: Observer) -> None:
    """C3: an orphan's `add` after the end raises at once, and writes nothing; nothing is checked out."""
    go_on = asyncio.Event()

    async def orphan() -> None:
        session = await db.session()
        await go_on.wait()
        session.add(Note(words="orphan"))

    async with db.scope():
        await insert("a")
        child = asyncio.create_task(orphan())
        await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(db.ScopeEndedError):
        await child
    assert await rows() == 1
    assert await postgres.idle_in_transaction() == 0


LATE: dict[str, Callable[[Any], object]] = {
    "begin": lambda inner: inner.begin().connection(None),
    "bulk_insert_mappings": lambda inner: inner.bulk_insert_mappings(Note, [{"words": "late"}]),
    "bulk_save_objects": lambda inner: inner.bulk_save_objects([Note(words="late")]),
    "bulk_update_mappings": lambda inner: inner.bulk_update_mappings(Note, [{"id": 1, "words": "late"}]),
    "connection": lambda inner: inner.connection(),
    "query": lambda inner: inner.query(Note).all(),
    "query.delete": lambda inner: inner.query(Note).delete(),
}


@pytest.mark.parametrize("operation", LATE.values(), ids=LATE)
async def test_sync_session_is_refused_after_the_end(operation: Callable[[Any], object], postgres: Observer) -> None:
    """C3: no method of the session inside an AsyncSession reaches the database after the end."""
    async with db.scope():
        await insert("a")
        inner = (await db.session()).sync_session
    with pytest.raises(db.ScopeEndedError):
        await greenlet_spawn(operation, inner)
    assert await postgres.idle_in_transaction() == 0


async def test_stopped_session_sends_nothing_more_of_a_flush() -> None:
    """A stopped session sends nothing more, also in the middle of one operation."""

    def stop(_mapper: object, _connection: object, note: Note) -> None:
        inner: Any = object_session(note)
        inner.access.stop(ZeroDivisionError())

    event.listen(Note, "after_insert", stop)
    try:
        with contextlib.suppress(ZeroDivisionError):
            async with db.scope():
                session = await db.session()
                session.add(Note(words="a", comments=[Comment()]))
                with pytest.raises(ZeroDivisionError):
                    await session.flush()
                raise ZeroDivisionError
    finally:
        event.remove(Note, "after_insert", stop)


async def test_closing_after_the_end_does_nothing() -> None:
    """Closing a session whose scope has ended is no error: `async with session` may outlive a scope."""
    async with db.scope():
        session = await db.session()
        await session.execute(SLEEP)
    await session.close()
    async with session:
        pass


async def test_lazy_load_after_the_end_is_refused(postgres: Observer) -> None:
    """An object that outlives its scope loads nothing through it."""
    await postgres.execute("INSERT INTO note (words) VALUES ('a')")
    async with db.scope():
        note = (await (await db.session()).scalars(select(Note))).one()
    with pytest.raises(Exception, match="not bound to a Session"):
        await note.awaitable_attrs.comments
    assert note.words == "a"


async def test_pool_exhausted_names_the_cause(database: db.Database) -> None:
    """C4: nested scopes that need more connections than the pool has get a named error that says why."""
    small = db.Database(database.url, pool_size=1, pool_timeout=0.1, default=True)
    async with db.scope():
        await insert("outer")
        with pytest.raises(db.PoolExhaustedError, match=r"nested scopes and isolated\(\) each hold a connection"):
            await db.isolated(insert, "inner")
        await insert("outer again")
    await db.isolated(insert, "inner")
    await small.dispose()


async def test_pool_exhausted_by_a_final_flush_names_the_cause(database: db.Database, rows: Count) -> None:
    """C4: the same error where the first statement is the flush at the end."""
    small = db.Database(database.url, pool_size=1, pool_timeout=0.1, default=True)
    async with db.scope():
        await insert("outer")
        with pytest.raises(db.PoolExhaustedError):
            async with db.scope():
                (await db.session()).add(Note(words="inner"))
    assert await rows() == 1
    await small.dispose()


async def test_async_session_in_a_worker_thread_is_refused(rows: Count, postgres: Observer) -> None:
    """C6: an `AsyncSession` in a worker thread, to which the scope was copied, is a named error; it works on after."""
    async with db.scope():
        session = await db.session()
        await insert("a")
        attempts: list[Callable[[], Any]] = [
            lambda: asyncio.run(session.execute(SLEEP)),
            lambda: session.sync_session.execute(SLEEP),
            lambda: session.add(Note(words="thread")),
            lambda: asyncio.run(session.commit()),
        ]
        for attempt in attempts:
            with pytest.raises(db.WrongThreadError, match="event loop's thread"):
                await asyncio.to_thread(attempt)
        await session.execute(INSERT, {"words": "b"})
    assert await rows() == 2
    assert await postgres.idle_in_transaction() == 0


async def test_adding_in_a_worker_thread_changes_nothing(rows: Count) -> None:
    """C6: a refused `add` changes neither the session's deletions nor its transaction."""
    await db.isolated(insert, "a")
    async with db.scope() as work:
        session = await db.session()
        with pytest.raises(db.WrongThreadError):
            await asyncio.to_thread(session.add, Note(words="thread"))
        assert not work.has_begun
        note = (await session.scalars(select(Note))).one()
        await session.delete(note)
        with pytest.raises(db.WrongThreadError):
            await asyncio.to_thread(session.add, note)
    assert await rows() == 0


async def test_first_error_comes_out_after_a_failed_flush(rows: Count) -> None:
    """C7: after a failed flush and a rollback it is the first error that the caller gets, not what a log made of it."""
    from sqlalchemy.exc import IntegrityError

    await db.isolated(insert, "a")
    with pytest.raises(IntegrityError, match="note_words_key"):
        async with db.scope():
            session = await db.session()
            note = Note(words="a")
            session.add(note)
            await session.flush()
    assert await rows() == 1


async def test_commit_within_run_sync_is_refused(rows: Count) -> None:
    """SQLAlchemy's own objects cannot commit past the scope: its callbacks would be skipped; the scope can go on."""
    async with db.scope():
        session = await db.session()
        await insert("a")
        with pytest.raises(db.RawTransactionError, match="run_sync"):
            await session.run_sync(lambda inner: inner.commit())
        transaction = session.sync_session.get_transaction()
        assert transaction is not None
        with pytest.raises(db.RawTransactionError):
            await session.run_sync(lambda _: transaction.commit())
        assert await rows() == 0
    assert await rows() == 1


async def test_stopped_session_raises_the_given_error() -> None:
    """`access.stop(error)` lets the next statement raise that error."""
    with pytest.raises(TimeoutError, match="too late"):
        async with db.scope():
            session = await db.session()
            session.access.stop(TimeoutError("too late"))
            await session.execute(SLEEP)


async def test_adding_an_object_during_anothers_flush_is_refused(postgres: Observer, rows: Count) -> None:
    """An object that another coroutine adds while a flush is in flight would be missed: named error."""
    await slow_inserts(postgres)
    async with db.scope():
        session = await db.session()
        session.add(Note(words="a"))
        flushing = asyncio.create_task(session.flush())
        await eventually(lambda: postgres.backends("active"), equals=1)
        with pytest.raises(db.ConcurrentUseError):
            session.add(Note(words="b"))
        await flushing
        session.add(Note(words="c"))
    assert await rows() == 2


async def slow_inserts(postgres: Observer) -> None:
    await postgres.execute(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.2); RETURN NEW; END $$"
    )
    await postgres.execute("CREATE TRIGGER slow BEFORE INSERT ON note FOR EACH ROW EXECUTE FUNCTION wait()")


async def test_object_graph_is_written_and_read_back() -> None:
    """An object graph is written in one flush, and read back through the same session."""
    async with db.scope():
        session = await db.session()
        session.add(Note(words="a", comments=[Comment(), Comment()]))
        await session.flush()
        note = (await session.scalars(select(Note))).one()
        assert len(await note.awaitable_attrs.comments) == 2
