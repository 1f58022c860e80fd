"""``JobSearch``: reading job rows for people, fast on a table of any size.

1. A page is read by its place in an index (keyset), never by an offset.
2. A filter that no index serves is applied to windows of rows. A search ends with the page, with the rows, or with its
   time, and says how far it got. The next page goes on there.
3. Counts end at `MOST_COUNTED`.
4. Each statement has a time limit of its own on PostgreSQL: `time_limit`.
"""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic_core import to_json
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Executable,
    LargeBinary,
    Select,
    and_,
    bindparam,
    false,
    func,
    literal,
    or_,
    select,
    text,
    true,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from db import default_database
from db.scope import scope
from worker.ledger.error_kind import kind_of
from worker.ledger.execute import execute
from worker.ledger.table import FINAL, NAME, State, now_ms, table
from worker.ledger.time_limit import limit_time

MOST_COUNTED = 100_000
"""Counts end here."""
_HEAD = 600  # bytes of arguments that a line in a list needs
_ERROR = 400  # characters of an error, likewise
_FIRST_WINDOW, _LARGEST_WINDOW = 2_000, 16_000  # rows
_BUDGET = 0.1  # seconds after which a search begins no new window
_KEYS_AT_ONCE = 5_000

FINAL_STATES = (State.DONE, State.ABORTED, State.DISCARDED, State.EXPIRED)


class place_in(FunctionElement[int]):  # noqa: N801 - an SQL function
    """Where bytes are in other bytes, from 1. 0 if they are not."""

    type = BigInteger()
    inherit_cache = True


@compiles(place_in, "postgresql")
def _postgresql_place(element: Any, compiler: Any, **options: Any) -> str:
    whole, part = (compiler.process(clause, **options) for clause in element.clauses)
    return f"position({part} IN {whole})"


@compiles(place_in, "sqlite")
def _sqlite_place(element: Any, compiler: Any, **options: Any) -> str:
    whole, part = (compiler.process(clause, **options) for clause in element.clauses)
    return f"instr({whole}, {part})"


class Place(NamedTuple):
    """The place of a row among ended ones, the latest first."""

    finished_at: int
    id: str
    enqueued_at: int


@dataclass(frozen=True, slots=True)
class RowFilter:
    """A filter for ended rows. All conditions must hold."""

    task: str | None = None
    queue: str | None = None
    error: str | None = None
    """A part of the error, in any case."""
    text: str | None = None
    """A part of the arguments, as they are on the wire."""
    since: int | None = None
    """Milliseconds since the epoch."""
    until: int | None = None

    @property
    def is_indexed(self) -> bool:
        """Whether the index alone finds the rows."""
        return (self.task, self.queue, self.error, self.text) == (None, None, None, None)


class FoundRow(NamedTuple):
    """A row in a list. Times are milliseconds since the epoch."""

    id: str
    enqueued_at: int
    task: str
    queue: str
    state: str
    tries: int
    due: int | None
    started_at: int | None
    finished_at: int | None
    error: str | None
    """Its beginning."""
    payload: bytes | None
    """Its beginning, as on the wire."""

    @property
    def place(self) -> Place:
        return Place(self.finished_at or 0, self.id, self.enqueued_at)


class Found(NamedTuple):
    """The rows of one page."""

    rows: list[FoundRow]
    searched_to: Place | None
    """How far the search got, if it ended with its time. None if `rows` is all that there is up to the page's end."""


class Failure(NamedTuple):
    """What groups of failures are made of."""

    id: str
    enqueued_at: int
    task: str
    queue: str
    finished_at: int
    error: str | None
    """Its beginning."""

    @property
    def place(self) -> Place:
        return Place(self.finished_at, self.id, self.enqueued_at)


class JobSearch:
    """The job rows of the default database, for reading.

    Args:
        name: the name of the table, with its schema if it has one (default: ``tandem_jobs``).
    """

    def __init__(self, name: str = NAME) -> None:
        self._jobs = table(name)

    async def ended(self, state: State, row_filter: RowFilter, after: Place | None, limit: int) -> Found:
        """Up to `limit` ended rows in this state, the latest first, after a place."""
        if row_filter.is_indexed:
            return Found(
                [FoundRow(*row) for row in await self._read(self._page(state, row_filter, after, limit))], None
            )
        ends = time.monotonic() + _BUDGET
        window = _FIRST_WINDOW
        rows: list[FoundRow] = []
        while True:
            statement = self._window(state, row_filter, after, window, limit - len(rows))
            found = await self._read(statement)
            rows += [FoundRow(*row[: len(FoundRow._fields)]) for row in found if row.matches]
            is_last = not found or found[-1].nth < window  # the window's last row always comes along
            if len(rows) >= limit or is_last:
                return Found(rows[:limit], None)
            after = FoundRow(*found[-1][: len(FoundRow._fields)]).place
            if time.monotonic() > ends:
                return Found(rows, after)
            window = min(2 * window, _LARGEST_WINDOW)

    async def by_id(self, prefix: str, limit: int) -> list[FoundRow]:
        """Rows whose id begins with `prefix`, in the order of their ids."""
        job = self._jobs.c
        inside = job.id >= prefix if not prefix else and_(job.id >= prefix, job.id < prefix[:-1] + _next(prefix[-1]))
        statement = select(*self._line).where(inside).order_by(job.id, job.enqueued_at.desc()).limit(limit)
        return [FoundRow(*row) for row in await self._read(statement)]

    async def all_of(self, job_id: str, limit: int = 20) -> list[Mapping[str, Any]]:
        """The latest rows of an id as dicts by column, the last enqueued one first."""
        job = self._jobs.c
        statement = select(self._jobs).where(job.id == job_id).order_by(job.enqueued_at.desc()).limit(limit)
        return [dict(zip(job.keys(), row, strict=True)) for row in await self._read(statement)]

    async def row_of(self, job_id: str, enqueued_at: int) -> Mapping[str, Any] | None:
        """The state and error of one row."""
        job = self._jobs.c
        statement = select(job.state, job.error).where(job.id == job_id, job.enqueued_at == enqueued_at)
        rows = await self._read(statement)
        return {"state": rows[0].state, "error": rows[0].error} if rows else None

    async def payloads(self, keys: Sequence[tuple[str, int]]) -> dict[tuple[str, int], bytes | None]:
        """The whole payloads of rows, given by id and enqueue time."""
        job = self._jobs.c
        statement = select(job.id, job.enqueued_at, job.payload).where(job.id.in_([job_id for job_id, _ in keys]))
        return {(row.id, row.enqueued_at): row.payload for row in await self._read(statement)}

    async def children(self, job_id: str, limit: int) -> list[FoundRow]:
        """Jobs that this job has enqueued. Empty if the table does not know the parents of jobs."""
        job = self._jobs.c
        if "parent" not in job:
            return []
        statement = select(*self._line).where(job["parent"] == job_id).order_by(job.enqueued_at).limit(limit)
        return [FoundRow(*row) for row in await self._read(statement)]

    async def count(self, state: State) -> int:
        """The number of rows in a state. One more than `MOST_COUNTED` stands for all larger numbers."""
        if state is not State.DONE:
            return await self._count(self._in(state), MOST_COUNTED + 1)
        # Rows of the four final states have one index, which has no state: those of the rare three are subtracted.
        others = sum([await self._count(self._in(other), MOST_COUNTED + 1) for other in FINAL_STATES[1:]])
        final = await self._count(text(FINAL), MOST_COUNTED + 1 + others)
        return min(max(final - others, 0), MOST_COUNTED + 1)

    async def clock(self) -> int:
        """The database's time, in milliseconds since the epoch."""
        return int((await self._read(select(now_ms())))[0][0])

    async def overdue(self) -> tuple[int, int | None]:
        """How many pending rows the relay should have checked by now (up to `MOST_COUNTED`), and since when."""
        job = self._jobs.c
        late = (
            select(job.check_at)
            .where(self._in(State.PENDING), job.check_at <= select(now_ms()).scalar_subquery())
            .order_by(job.check_at)
            .limit(MOST_COUNTED + 1)
            .subquery()
        )
        row = (await self._read(select(func.count(), func.min(late.c.check_at))))[0]
        return int(row[0]), row[1]

    async def failures(self, after: Place | None, since: int | None, limit: int) -> list[Failure]:
        """Up to `limit` failed rows, the latest first, after a place and not before the time `since`."""
        job = self._jobs.c
        fields = {"error": func.substr(job.error, 1, _ERROR)}
        columns = [fields[field].label(field) if field in fields else job[field] for field in Failure._fields]
        statement = select(*columns).where(self._at(State.FAILED, RowFilter(since=since), after))
        return [Failure(*row) for row in await self._read(self._latest_first(statement).limit(limit))]

    async def failed_keys(
        self, row_filter: RowFilter, kind: str | None, *, most: int | None = None
    ) -> AsyncIterator[list[tuple[str, int]]]:
        """Keys of failed rows, the latest first, in chunks.

        Args:
            kind: only errors of this kind, by `kind_of`.
            most: read no more than this number of rows.
        """
        after: Place | None = None
        read = 0
        while most is None or read < most:
            statement = self._keys(row_filter, kind, after, _KEYS_AT_ONCE)
            rows = await self._read(statement)
            chunk = [(row.id, row.enqueued_at) for row in rows if kind is None or kind_of(row.error or "") == kind]
            if most is not None:
                chunk = chunk[: most - read]
            read += len(chunk)
            if chunk:
                yield chunk
            if len(rows) < _KEYS_AT_ONCE:
                return
            last = rows[-1]
            after = Place(last.finished_at, last.id, last.enqueued_at)

    async def _count(self, condition: Any, most: int) -> int:
        some = select(literal(1)).select_from(self._jobs).where(condition).limit(most).subquery()
        return int((await self._read(select(func.count()).select_from(some)))[0][0])

    @property
    def _line(self) -> list[ColumnElement[Any]]:
        job = self._jobs.c
        shortened = {"error": func.substr(job.error, 1, _ERROR), "payload": func.substr(job.payload, 1, _HEAD)}
        return [shortened[field].label(field) if field in shortened else job[field] for field in FoundRow._fields]

    def _page(self, state: State, row_filter: RowFilter, after: Place | None, limit: int) -> Select[Any]:
        return self._latest_first(select(*self._line).where(self._at(state, row_filter, after))).limit(limit)

    def _window(self, state: State, row_filter: RowFilter, after: Place | None, window: int, limit: int) -> Select[Any]:
        """Rows of the next `window` rows that match, and the window's last row, with `nth` and `matches`."""
        job = self._jobs.c
        nth = func.row_number().over(order_by=(job.finished_at.desc(), job.id.desc(), job.enqueued_at.desc()))
        matches = self._matches(row_filter).label("matches")
        inner = select(*self._line, nth.label("nth"), matches).where(self._at(state, row_filter, after))
        rows = self._latest_first(inner).limit(window).subquery()
        found = select(*(rows.c[field] for field in FoundRow._fields), rows.c.nth, rows.c.matches)
        return found.where(or_(rows.c.matches, rows.c.nth == window)).order_by(rows.c.nth).limit(limit + 1)

    def _keys(self, row_filter: RowFilter, kind: str | None, after: Place | None, limit: int) -> Select[Any]:
        job = self._jobs.c
        begins = true() if not kind else job.error.startswith(kind.partition("#")[0], autoescape=True)
        statement = select(job.id, job.enqueued_at, job.finished_at, job.error).where(
            self._at(State.FAILED, row_filter, after), self._matches(row_filter), begins
        )
        return self._latest_first(statement).limit(limit)

    def _latest_first(self, statement: Select[Any]) -> Select[Any]:
        job = self._jobs.c
        return statement.order_by(job.finished_at.desc(), job.id.desc(), job.enqueued_at.desc())

    def _at(self, state: State, row_filter: RowFilter, after: Place | None) -> ColumnElement[bool]:
        """The conditions that an index serves."""
        job = self._jobs.c
        conditions = [self._in(state)]
        if row_filter.since is not None:
            conditions.append(job.finished_at >= row_filter.since)
        if row_filter.until is not None:
            conditions.append(job.finished_at <= row_filter.until)
        if after is not None:
            later = and_(job.id == after.id, job.enqueued_at < after.enqueued_at)
            conditions.append(job.finished_at <= after.finished_at)
            conditions.append(or_(job.finished_at < after.finished_at, job.id < after.id, later))
        return and_(*conditions)

    def _matches(self, row_filter: RowFilter) -> ColumnElement[bool]:
        """The other conditions."""
        job = self._jobs.c
        conditions: list[ColumnElement[bool]] = []
        if row_filter.task is not None:
            conditions.append(job.task == row_filter.task)
        if row_filter.queue is not None:
            conditions.append(job.queue == row_filter.queue)
        if row_filter.error is not None:
            found = func.coalesce(job.error.icontains(row_filter.error, autoescape=True), false())
            conditions.append(found)
        if row_filter.text is not None:
            conditions.append(self._has_text(row_filter.text))
        return and_(true(), *conditions)

    def _has_text(self, part: str) -> ColumnElement[bool]:
        wire = to_json(part)[1:-1]
        return func.coalesce(place_in(self._jobs.c.payload, literal(wire, LargeBinary)) > 0, false())

    def _in(self, state: State) -> ColumnElement[bool]:
        # Not a parameter: the indexes are partial by state, and the planner must see the value to use them.
        condition: ColumnElement[bool] = self._jobs.c.state == bindparam(None, state.value, literal_execute=True)
        return condition

    async def _read(self, statement: Executable) -> Sequence[Any]:
        async with scope() as work:
            session = await work.session(default_database())
            await limit_time(session)
            rows: Sequence[Any] = (await execute(session, statement)).all()
        return rows


def _next(character: str) -> str:
    """The character that follows in the order of ids."""
    following = ord(character) + 1
    return chr(0xE000 if following == 0xD800 else min(following, 0x10FFFF))  # surrogates are no characters
