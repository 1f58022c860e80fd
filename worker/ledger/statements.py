"""The ledger's statements, in the dialect of one kind of database."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Executable,
    Select,
    Text,
    and_,
    bindparam,
    case,
    delete,
    func,
    literal,
    literal_column,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from worker.ledger.table import FINAL, State, now_ms, table

GRACE = 3000
"""Milliseconds that whoever committed a row has to publish it, before the relay looks after it."""
_PAST_DUE = 5000  # milliseconds past its due time at which a deferred job is looked after
_FIRST_PAUSE, _LONGEST_PAUSE = 5000, 10 * 60 * 1000  # milliseconds between two looks at one row
_MOST_DOUBLINGS = 8

# Whether an INSERT wrote its row: psycopg's cursor does not say any more once it is closed, as SQLAlchemy does at once.
_COUNTED: dict[str, Any] = {"preserve_rowcount": True}
_INSERT: dict[str, Any] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}
_PLACES = {"postgresql": "ctid", "sqlite": "rowid"}
DIALECTS = frozenset(_INSERT)
"""Those of the databases that can hold a ledger."""


@dataclass(frozen=True, slots=True)
class Statements:
    """What the ledger says to the database. Parameters are named as the fields of :mod:`worker.ledger.rows`."""

    add: Executable
    """A pending row."""
    reserve: Executable
    """The same, unless its id is pending already: then it writes no row."""
    settle: Executable
    """An ending, over a pending or a failed row, or as a new one; over any other it writes nothing."""
    known: Executable
    """The state and result of a job."""
    standing: Executable
    """The same, of a list of keys."""
    latest: Executable
    """The row of an id that was enqueued last, and the time `now`."""
    pending: Executable
    """The pending row of an id."""
    abort: Executable
    """Set the pending row of an id aborted."""
    last_enqueued: Executable
    """The latest enqueue time in a range of ids."""
    take_due: Executable
    """Rows that the relay is to look after; each is due for its next look later."""
    unpublished: Executable
    """Those rows of a list of keys that are pending still."""
    all_due: Executable
    """Make all pending rows of a queue due for a look."""
    prune: Executable
    """Delete rows that ended long ago, the oldest first."""

    @classmethod
    @cache
    def of(cls, dialect: str, name: str) -> "Statements":
        """Those for the table `name` on a database of `dialect`."""
        jobs = table(name)
        job = jobs.c
        insert = _INSERT[dialect]
        due = func.coalesce(bindparam("due", type_=BigInteger), now_ms() + bindparam("delay", type_=BigInteger))
        fields = ("id", "enqueued_at", "task", "queue", "payload", "patience")
        add = insert(jobs).values(
            **{field: bindparam(field, type_=job[field].type) for field in fields},
            state=literal(State.PENDING.value),
            due=due,
            check_at=_later(due, now_ms()) + GRACE,
        )
        ending = ("id", "enqueued_at", "task", "queue", "state", "payload", "result", "error", "traceback", "tries")
        settle = insert(jobs).values(
            **{field: bindparam(field, type_=job[field].type) for field in (*ending, "started_at")},
            finished_at=now_ms(),
        )
        told = ("state", "result", "error", "traceback", "tries", "started_at", "finished_at")
        key = tuple_(job.id, job.enqueued_at)
        unpublished = select(
            job.id,
            job.enqueued_at,
            job.task,
            job.queue,
            job.payload,
            _later(job.due - now_ms(), literal(0)).label("delay"),
            job.patience,
            func.coalesce(job.due + job.patience < now_ms(), literal(False)).label("expired"),
        ).where(job.state == State.PENDING.value)
        due_now = (
            select(jobs)
            .where(job.state == State.PENDING.value, job.check_at <= now_ms())
            .order_by(job.check_at)
            .limit(bindparam("limit"))
            .with_for_update()
        )
        long_over = (
            select(jobs)
            .where(text(FINAL), job.finished_at < now_ms() - bindparam("keep", type_=BigInteger))
            .order_by(job.finished_at)
            .limit(bindparam("limit"))
            .with_for_update(skip_locked=True)
        )
        doubled = literal(_FIRST_PAUSE).bitwise_lshift(_earlier(job.checks, literal(_MOST_DOUBLINGS)))
        pause = _earlier(doubled, literal(_LONGEST_PAUSE))
        return cls(
            add=add,
            reserve=add.on_conflict_do_nothing().execution_options(**_COUNTED),
            settle=settle.on_conflict_do_update(
                index_elements=[job.id, job.enqueued_at],
                set_={column: settle.excluded[column] for column in told} | {"check_at": None},
                # Not IN, which SQLAlchemy writes anew for each list: many rows at once could not be.
                where=or_(job.state == State.PENDING.value, job.state == State.FAILED.value),
            ).execution_options(**_COUNTED),
            known=select(job.state, job.result).where(
                job.id == bindparam("id", type_=Text), job.enqueued_at == bindparam("enqueued_at", type_=BigInteger)
            ),
            standing=select(job.id, job.enqueued_at, job.state, job.result).where(
                key.in_(bindparam("keys", expanding=True))
            ),
            latest=select(jobs, now_ms().label("now"))
            .where(job.id == bindparam("id", type_=Text))
            .order_by(job.enqueued_at.desc())
            .limit(1),
            pending=unpublished.where(job.id == bindparam("id", type_=Text)),
            abort=update(jobs)
            .where(job.state == State.PENDING.value, job.id == bindparam("of_id", type_=Text))
            .values(state=State.ABORTED.value, finished_at=now_ms(), check_at=None),
            last_enqueued=select(func.max(job.enqueued_at).label("last")).where(
                job.id >= bindparam("first", type_=Text), job.id < bindparam("end", type_=Text)
            ),
            take_due=update(jobs)
            .where(_at(dialect, due_now))
            .values(check_at=_later(now_ms() + pause, job.due + _PAST_DUE), checks=job.checks + 1)
            .returning(job.id, job.enqueued_at, job.queue),
            unpublished=unpublished.where(key.in_(bindparam("keys", expanding=True))),
            all_due=update(jobs)
            .where(
                and_(
                    job.state == State.PENDING.value,
                    job.queue == bindparam("of_queue", type_=Text),
                    job.check_at > now_ms(),
                )
            )
            .values(check_at=now_ms(), checks=0),
            prune=delete(jobs).where(_at(dialect, long_over)),
        )


def _at(dialect: str, rows: Select[Any]) -> ColumnElement[bool]:
    """These rows, by where they lie: to find them by their keys, the planner may rather read the whole table."""
    place: ColumnElement[Any] = literal_column(_PLACES[dialect])
    places = rows.with_only_columns(place).correlate(None).scalar_subquery()
    return place == func.any(func.array(places)) if dialect == "postgresql" else place.in_(places)


def _later(one: Any, other: Any) -> Any:
    return case((one > other, one), else_=other)


def _earlier(one: Any, other: Any) -> Any:
    return case((one < other, one), else_=other)
