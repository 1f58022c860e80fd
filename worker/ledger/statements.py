"""The ledger's statements, in the dialect of one kind of database."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    Executable,
    ScalarSelect,
    Select,
    Table,
    Text,
    bindparam,
    case,
    delete,
    func,
    literal,
    literal_column,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from worker.ledger.table import FINAL, State, now_ms, spread, table

GRACE = 3000
"""Milliseconds that whoever committed a row has to publish it, before the relay looks after it."""

# Whether an INSERT wrote its row: psycopg's cursor does not say any more once it is closed, as SQLAlchemy does at once.
_COUNTED: dict[str, Any] = {"preserve_rowcount": True}
_Insert: TypeAlias = Callable[[Table], Any]
_INSERT: dict[str, _Insert] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}
_PLACES = {"postgresql": "ctid", "sqlite": "rowid"}
DIALECTS = frozenset(_INSERT)
"""Those of the databases that can hold a ledger."""


@dataclass(frozen=True, slots=True)
class Statements:
    """The ledger's statements. Parameters are named as the fields of `NewJob` and of :mod:`worker.ledger.rows`."""

    add: Executable
    """A pending row."""
    reserve: Executable
    """The same, unless its id is pending already: then it writes no row."""
    complete: Executable
    """An ending, over a pending or a failed row, or as a new one; over any other it writes nothing."""
    known: Executable
    """The state and result of a job."""
    standing: Executable
    """The same, of the rows of a list of ids that were enqueued since."""
    latest: Executable
    """The row of an id that was enqueued last between two times, and the time `now`."""
    pending: Executable
    """The pending row of an id."""
    abort: Executable
    """Set the pending row of an id, enqueued between two times, aborted."""
    last_enqueued: Executable
    """The enqueue time of the last row in a range of a task's ids."""
    due: Executable
    """Pending rows that the relay is to look after, by the time from which on, and id."""
    unpublished: Executable
    """Those rows of a list of ids that are pending still, and that nobody is about to write."""
    sizes: Executable
    """The bytes of the payloads of a list of ids."""
    pending_after: Executable
    """Pending rows of some queues, by id."""
    prune: Executable
    """Delete rows that ended long ago, the oldest first."""

    @classmethod
    @cache
    def of(cls, dialect: str, name: str) -> "Statements":
        """Those for the table `name` on a database of `dialect`."""
        jobs = table(name)
        return cls(
            **_enqueueing(jobs, _INSERT[dialect]),
            **_ending(jobs, _INSERT[dialect]),
            **_asking(jobs),
            **_relaying(jobs),
            **_pruning(jobs, dialect),
        )


def _enqueueing(jobs: Table, insert: _Insert) -> dict[str, Executable]:
    job = jobs.c
    fields = ("id", "enqueued_at", "task", "queue", "payload")
    # How long a job may wait counts from a due time that is to come, else from now, as in Redis.
    asked = func.coalesce(bindparam("due", type_=BigInteger), now_ms() + bindparam("delay", type_=BigInteger))
    due = _later(asked, now_ms())
    add = insert(jobs).values(
        **_named(job, fields),
        patience=bindparam("expires", type_=BigInteger),
        state=literal(State.PENDING.value),
        due=due,
        check_at=due + GRACE + spread(),
    )
    return {"add": add, "reserve": add.on_conflict_do_nothing().execution_options(**_COUNTED)}


def _ending(jobs: Table, insert: _Insert) -> dict[str, Executable]:
    job = jobs.c
    told = ("state", "result", "error", "traceback", "tries", "started_at")
    complete = insert(jobs).values(
        **_named(job, ("id", "enqueued_at", "task", "queue", "payload", *told)), finished_at=now_ms()
    )
    over_what_may_run = complete.on_conflict_do_update(
        index_elements=[job.id, job.enqueued_at],
        set_={column: complete.excluded[column] for column in (*told, "finished_at")} | {"check_at": None},
        # Not IN, which SQLAlchemy writes anew for each list: many rows at once could not be.
        where=or_(job.state == State.PENDING.value, job.state == State.FAILED.value),
    )
    abort = (
        update(jobs)
        .where(job.state == State.PENDING.value, job.id == bindparam("of_id", type_=Text), _in_time(job))
        .values(state=State.ABORTED.value, finished_at=now_ms(), check_at=None)
    )
    return {"complete": over_what_may_run.execution_options(**_COUNTED), "abort": abort}


def _asking(jobs: Table) -> dict[str, Executable]:
    job = jobs.c
    of_id = job.id == bindparam("id", type_=Text)
    unpublished = select(
        job.id,
        job.enqueued_at,
        job.task,
        job.queue,
        job.payload,
        (job.due - now_ms()).label("delay"),
        job.patience,
        func.coalesce(job.due + job.patience < now_ms(), literal(False)).label("expired"),
    ).where(job.state == State.PENDING.value)
    since = job.enqueued_at >= bindparam("since", type_=BigInteger)
    of_ids = job.id.in_(bindparam("ids", expanding=True))
    ids_between = (job.id >= bindparam("first", type_=Text), job.id < bindparam("end", type_=Text))
    return {
        "known": select(job.state, job.result).where(
            of_id, job.enqueued_at == bindparam("enqueued_at", type_=BigInteger)
        ),
        # Not by pairs, nor `unpublished`: of 500 PostgreSQL makes as many searches, and takes 30 times as long.
        "standing": select(job.id, job.enqueued_at, job.state, job.result).where(of_ids, since),
        "latest": select(jobs, now_ms().label("now"))
        .where(of_id, _in_time(job))
        .order_by(job.enqueued_at.desc())
        .limit(1),
        "pending": unpublished.where(of_id),
        # An id is unique among pending rows.
        "unpublished": unpublished.where(of_ids).with_for_update(read=True, skip_locked=True),
        "sizes": select(job.id, job.enqueued_at, func.length(job.payload).label("size")).where(of_ids),
        "last_enqueued": select(job.enqueued_at)
        .where(*ids_between, job.task == bindparam("task", type_=Text))
        .order_by(job.id.desc())
        .limit(1),
    }


def _relaying(jobs: Table) -> dict[str, Executable]:
    # It only reads: a job that runs at REPEATABLE READ could not set a row done that was written since it began.
    job = jobs.c
    is_pending = job.state == State.PENDING.value
    after_time, after_id = bindparam("after_time", type_=BigInteger), bindparam("after_id", type_=Text)
    due = (
        select(job.check_at, job.id, job.enqueued_at, job.queue)
        .where(is_pending, job.check_at >= after_time, job.check_at <= _now())
        .where(or_(job.check_at > after_time, job.id > after_id))
        .order_by(job.check_at, job.id)
        .limit(bindparam("limit"))
    )
    of_queues = job.queue.in_(bindparam("queues", expanding=True))
    pending_after = (
        select(job.id, job.enqueued_at, job.queue)
        .where(is_pending, of_queues, job.id > bindparam("after", type_=Text))
        .order_by(job.id)
        .limit(bindparam("limit"))
    )
    return {"due": due, "pending_after": pending_after}


def _pruning(jobs: Table, dialect: str) -> dict[str, Executable]:
    long_over = (
        select(jobs)
        .where(text(FINAL), jobs.c.finished_at < _now() - bindparam("keep", type_=BigInteger))
        .order_by(jobs.c.finished_at)
        .limit(bindparam("limit"))
        .with_for_update(skip_locked=True)
    )
    return {"prune": delete(jobs).where(_at(dialect, long_over))}


def _named(job: Any, columns: Sequence[str]) -> dict[str, BindParameter[Any]]:
    """A parameter for each column, of its name and type."""
    return {column: bindparam(column, type_=job[column].type) for column in columns}


def _in_time(job: Any) -> ColumnElement[bool]:
    """Enqueued between two times; one that is meant is both. As a range, so that the primary key finds it."""
    inside: ColumnElement[bool] = job.enqueued_at.between(
        bindparam("since", type_=BigInteger), bindparam("until", type_=BigInteger)
    )
    return inside


def _now() -> ScalarSelect[int]:
    """The clock, read once: where it may differ from row to row, PostgreSQL would walk the whole index."""
    return select(now_ms()).scalar_subquery()


def _at(dialect: str, rows: Select[Any]) -> ColumnElement[bool]:
    """These rows, by where they lie: to find them by their keys, the planner may rather read the whole table."""
    place: ColumnElement[Any] = literal_column(_PLACES[dialect])
    places = rows.with_only_columns(place).correlate(None).scalar_subquery()
    return place == func.any(func.array(places)) if dialect == "postgresql" else place.in_(places)


def _later(one: Any, other: Any) -> Any:
    return case((one > other, one), else_=other)
