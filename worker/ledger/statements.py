"""The ledger's SQL statements, for PostgreSQL or SQLite."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

from pydantic_core import to_json
from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    Executable,
    Integer,
    ScalarSelect,
    Select,
    Table,
    Text,
    bindparam,
    case,
    cast,
    column,
    delete,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    text,
    update,
)

from worker.ledger.rows import ORIGIN, IdRange
from worker.ledger.table import FINAL, State, now_ms, spread, table

GRACE = 3000
"""Milliseconds within which the process that committed a row publishes it. After that the relay does."""

# Keeps the row count of an INSERT: SQLAlchemy closes the cursor at once, and psycopg's cursor then loses the count.
_COUNTED: dict[str, Any] = {"preserve_rowcount": True}
_Insert: TypeAlias = Callable[[Table], Any]
_ROW_LOCATIONS = {"postgresql": "ctid", "sqlite": "rowid"}
_TIMES = ("due", "delay", "expires")
_OUTCOME = ("state", "result", "error", "traceback", "tries", "started_at")
CHUNK_FIELDS = ("id", "enqueued_at", "task", "queue", "payload", "result", "tries", "started_at")
"""The fields of the rows of `Statements.complete_all`, besides `ORIGIN`."""
COMPLETED_BEFORE = "tandem:completed_before:"
"""The text in the error of `Statements.complete_or_fail`, if the row was final before."""
DIALECTS = frozenset(_ROW_LOCATIONS)
"""The kinds of databases that can hold a ledger."""


@dataclass(frozen=True, slots=True)
class Statements:
    """The ledger's statements. Parameters are named as the fields of `NewJob` and of :mod:`worker.ledger.rows`."""

    add: Executable
    """Insert a pending row."""
    add_all: Executable | None
    """Insert pending rows, one for each element of the arrays of their fields. None on SQLite."""
    reserve: Executable
    """Insert a pending row, unless its id is pending already."""
    complete: Executable
    """Write a final row: a new one, or over a pending or failed one. Over any other row it writes nothing.

    A row that becomes done loses its payload, which nothing reads any more, unless `keep_arguments`."""
    complete_or_fail: Executable | None
    """The same, but it fails where `complete` writes nothing, with `COMPLETED_BEFORE` in its error. None on SQLite."""
    complete_all: Executable | None
    """Write done rows, one for each element of the arrays of their fields, as `complete` does. None on SQLite."""
    stored_result: Executable
    """The state and result of a job."""
    stored_results: Executable
    """The states and results of the rows of a list of ids, enqueued at a given time or later."""
    latest: Executable
    """The last row of an id that was enqueued between two times, and the time `now`."""
    pending: Executable
    """The pending row of an id."""
    abort: Executable
    """Set the pending row of an id aborted, if it was enqueued between two times."""
    last_enqueued: Executable
    """The positions of ranges of tasks' ids (`range_parameters`), and the enqueue times of the last rows in them."""
    due: Executable
    """Pending rows that the relay has to check, ordered by `check_at` and id."""
    unpublished: Executable
    """The rows of a list of ids that are still pending, without locked ones."""
    sizes: Executable
    """The sizes of the payloads of a list of ids, in bytes."""
    pending_after: Executable
    """Pending rows of some queues, ordered by id."""
    pending_at: Executable
    """The id of the pending row at a share of all pending rows in the order of their ids."""
    prune: Executable
    """Delete rows that became final long ago, the oldest first. Return when they did."""

    @classmethod
    @cache
    def of(cls, dialect: str, name: str, *, with_origin: bool = False, keep_arguments: bool = False) -> "Statements":
        """The statements for the table `name` on a database of `dialect`.

        Args:
            with_origin: whether those that insert rows write the columns of `ORIGIN`, too.
            keep_arguments: whether `complete` leaves the payload of a row that it sets done.
        """
        jobs, insert, origin = table(name), insert_of(dialect), ORIGIN if with_origin else ()
        return cls(
            **_enqueueing(jobs, insert, origin, dialect),
            **_completing(jobs, insert, origin, dialect, keep_arguments=keep_arguments),
            **_reading(jobs),
            **_relaying(jobs),
            **_scheduling(jobs, dialect),
            **_pruning(jobs, dialect),
        )


def insert_of(dialect: str) -> _Insert:
    """The `insert` of a dialect, which knows ON CONFLICT."""
    if dialect == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as insert_into_postgresql  # noqa: PLC0415 - the engine's own

        return insert_into_postgresql
    from sqlalchemy.dialects.sqlite import insert as insert_into_sqlite  # noqa: PLC0415 - the dialect of the engine

    return insert_into_sqlite


def _enqueueing(jobs: Table, insert: _Insert, origin: Sequence[str], dialect: str) -> dict[str, Any]:
    fields = ("id", "enqueued_at", "task", "queue", "payload", *origin)
    times = {name: bindparam(name, type_=BigInteger) for name in _TIMES}
    add = insert(jobs).values(**_parameters(jobs.c, fields), **_pending(**times))
    return {
        "add": add,
        "add_all": _add_all(jobs, insert, fields) if dialect == "postgresql" else None,
        "reserve": add.on_conflict_do_nothing().execution_options(**_COUNTED),
    }


def _pending(due: Any, delay: Any, expires: Any) -> dict[str, Any]:
    """The further columns of a pending row. Its expiry counts from a due time in the future, else from now, as in
    Redis."""
    at = _later_of(func.coalesce(due, now_ms() + delay), now_ms())
    return {"patience": expires, "state": literal(State.PENDING.value), "due": at, "check_at": at + GRACE + spread()}


def _add_all(jobs: Table, insert: _Insert, fields: Sequence[str]) -> Executable:
    from sqlalchemy.dialects.postgresql import ARRAY  # noqa: PLC0415 - the dialect of the engine

    types = {field: jobs.c[field].type for field in fields} | dict.fromkeys(_TIMES, BigInteger())
    unnested = [func.unnest(bindparam(name, type_=ARRAY(kind))).label(name) for name, kind in types.items()]
    given = select(*unnested).cte("given").c
    further = _pending(**{name: given[name] for name in _TIMES})
    rows = select(*(given[field] for field in fields), *further.values())
    statement: Executable = insert(jobs).from_select([*fields, *further], rows)
    return statement


def _completing(
    jobs: Table, insert: _Insert, origin: Sequence[str], dialect: str, *, keep_arguments: bool
) -> dict[str, Any]:
    job = jobs.c
    fields = ("id", "enqueued_at", "task", "queue", "payload", *_OUTCOME, *origin)
    complete = insert(jobs).values(**_parameters(job, fields), finished_at=now_ms())
    upsert = _over_unsettled(jobs, complete, keep_arguments=keep_arguments)
    abort = (
        update(jobs)
        .where(job.state == State.PENDING.value, job.id == bindparam("of_id", type_=Text), _enqueued_between(job))
        .values(state=State.ABORTED.value, finished_at=now_ms(), check_at=None)
    )
    return {
        "complete": upsert.execution_options(**_COUNTED),
        "complete_or_fail": _complete_or_fail(upsert) if dialect == "postgresql" else None,
        "complete_all": _complete_all(jobs, insert, (*CHUNK_FIELDS, *origin), keep_arguments=keep_arguments)
        if dialect == "postgresql"
        else None,
        "abort": abort,
    }


def _over_unsettled(jobs: Table, insertion: Any, *, keep_arguments: bool) -> Any:
    """Let the insertion of a final row overwrite a pending or failed one."""
    job = jobs.c
    changes = {column: insertion.excluded[column] for column in (*_OUTCOME, "finished_at")} | {"check_at": None}
    if not keep_arguments:
        is_done = insertion.excluded.state == literal_column(f"'{State.DONE.value}'")
        changes["payload"] = case((is_done, null()), else_=job.payload)
    return insertion.on_conflict_do_update(
        index_elements=[job.id, job.enqueued_at],
        set_=changes,
        # Not IN, which SQLAlchemy expands for each execution, so that one statement could not write many rows.
        where=or_(job.state == State.PENDING.value, job.state == State.FAILED.value),
    )


def _complete_all(jobs: Table, insert: _Insert, fields: Sequence[str], *, keep_arguments: bool) -> Executable:
    from sqlalchemy.dialects.postgresql import ARRAY  # noqa: PLC0415 - the dialect of the engine

    given = [func.unnest(bindparam(field, type_=ARRAY(jobs.c[field].type))) for field in fields]
    rows = select(*given, literal(State.DONE.value), now_ms())
    insertion = insert(jobs).from_select([*fields, "state", "finished_at"], rows)
    upsert: Executable = _over_unsettled(jobs, insertion, keep_arguments=keep_arguments).execution_options(**_COUNTED)
    return upsert


def _complete_or_fail(upsert: Any) -> Executable:
    written = upsert.returning(literal_column("1")).cte("written")
    # The count is added to the text that is no number, as PostgreSQL would convert a constant while it plans.
    count = select(func.count().label("rows")).select_from(written).subquery("counted").c.rows
    failure = cast(literal_column(f"'{COMPLETED_BEFORE}'").concat(cast(count, Text)), Integer)
    return select(case((count == literal_column("0"), failure)))


def _reading(jobs: Table) -> dict[str, Executable]:
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
    return {
        "stored_result": select(job.state, job.result).where(
            of_id, job.enqueued_at == bindparam("enqueued_at", type_=BigInteger)
        ),
        # By id alone, as `unpublished` is. For 500 pairs of id and time PostgreSQL would search 500 times, and take 30
        # times as long.
        "stored_results": select(job.id, job.enqueued_at, job.state, job.result).where(of_ids, since),
        "latest": select(jobs, now_ms().label("now"))
        .where(of_id, _enqueued_between(job))
        .order_by(job.enqueued_at.desc())
        .limit(1),
        "pending": unpublished.where(of_id),
        # An id is unique among pending rows.
        "unpublished": unpublished.where(of_ids).with_for_update(read=True, skip_locked=True),
        "sizes": select(job.id, job.enqueued_at, func.length(job.payload).label("size")).where(of_ids),
    }


def _relaying(jobs: Table) -> dict[str, Executable]:
    # The relay only reads. A job at REPEATABLE READ could not set a row done that was written since the job began.
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
    share = func.count() * bindparam("permille", type_=BigInteger) // 1000
    skipped = select(share).select_from(jobs).where(is_pending).scalar_subquery().correlate(None)
    pending_at = select(job.id).where(is_pending).order_by(job.id).offset(skipped).limit(1)
    return {"due": due, "pending_after": pending_after, "pending_at": pending_at}


def _scheduling(jobs: Table, dialect: str) -> dict[str, Executable]:
    job = jobs.c
    ranges = _ranges(dialect)
    last = (
        select(job.enqueued_at)
        .where(job.id >= ranges.c.first, job.id < ranges.c.end, job.task == ranges.c.task)
        .order_by(job.id.desc(), job.enqueued_at.desc())
        .limit(1)
        .correlate(ranges)
        .scalar_subquery()
    )
    return {"last_enqueued": select(ranges.c.position, last.label("enqueued_at"))}


def _ranges(dialect: str) -> Any:
    """The ranges of ids in the parameters as rows, with their positions from 0 on."""
    if dialect == "postgresql":
        from sqlalchemy.dialects.postgresql import ARRAY  # noqa: PLC0415 - the dialect of the engine

        columns = [func.unnest(bindparam(name, type_=ARRAY(Text))) for name in IdRange._fields]
        numbers = func.generate_subscripts(bindparam("task", type_=ARRAY(Text)), 1) - 1
        names = ("position", *IdRange._fields)
        return select(*(each.label(name) for name, each in zip(names, (numbers, *columns), strict=True))).cte("ranges")
    given = func.json_each(bindparam("ranges", type_=Text)).table_valued(column("key"), column("value"), name="given")
    fields = (func.json_extract(given.c.value, f"$[{n}]").label(name) for n, name in enumerate(IdRange._fields))
    return select(given.c.key.label("position"), *fields).cte("ranges")


def range_parameters(dialect: str, ranges: Sequence[IdRange]) -> dict[str, Any]:
    """The parameters of `Statements.last_enqueued`."""
    if dialect == "postgresql":
        return {name: [each[n] for each in ranges] for n, name in enumerate(IdRange._fields)}
    return {"ranges": to_json(ranges).decode()}


def _pruning(jobs: Table, dialect: str) -> dict[str, Executable]:
    long_final = (
        select(jobs)
        .where(text(FINAL), jobs.c.finished_at < _now() - bindparam("keep", type_=BigInteger))
        .where(jobs.c.finished_at >= bindparam("after", type_=BigInteger))
        .order_by(jobs.c.finished_at)
        .limit(bindparam("limit"))
        .with_for_update(skip_locked=True)
    )
    return {"prune": delete(jobs).where(_by_location(dialect, long_final)).returning(jobs.c.finished_at)}


def _parameters(job: Any, columns: Sequence[str]) -> dict[str, BindParameter[Any]]:
    """A parameter for each column, with the column's name and type."""
    return {column: bindparam(column, type_=job[column].type) for column in columns}


def _enqueued_between(job: Any) -> ColumnElement[bool]:
    """The condition that a row was enqueued between two times. A range, which the primary key's index can search."""
    inside: ColumnElement[bool] = job.enqueued_at.between(
        bindparam("since", type_=BigInteger), bindparam("until", type_=BigInteger)
    )
    return inside


def _now() -> ScalarSelect[int]:
    """The clock, read once. If it could differ from row to row, PostgreSQL would read the whole index."""
    return select(now_ms()).scalar_subquery()


def _by_location(dialect: str, rows: Select[Any]) -> ColumnElement[bool]:
    """The condition that a row is one of `rows`, by its location. By key the planner may read the whole table."""
    location: ColumnElement[Any] = literal_column(_ROW_LOCATIONS[dialect])
    locations = rows.with_only_columns(location).correlate(None).scalar_subquery()
    return location == func.any(func.array(locations)) if dialect == "postgresql" else location.in_(locations)


def _later_of(one: Any, other: Any) -> Any:
    return case((one > other, one), else_=other)
