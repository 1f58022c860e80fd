"""The table of job rows.

1. A row is one job, known by its id AND its enqueue time. If a free id is used again, that is another row.
2. Only `pending` rows are acted upon automatically. The other states are final, except `failed`, which an administrator
   may retry.
3. Each index holds only the rows that its reader needs. So neither the relay nor the list of failures reads done rows.
"""

from enum import StrEnum
from functools import cache
from typing import Any

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, MetaData, String, Table, Text, text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from db.engine.sqlalchemy_version import storage_parameters
from worker.ledger.control_tables import add_control_tables

NAME = "tandem_jobs"


class State(StrEnum):
    """The state of a job in the ledger."""

    PENDING = "pending"
    """The job is to run: it is in Redis, or the relay will publish it."""
    DONE = "done"
    """The job's effects are committed. Nothing overwrites this."""
    FAILED = "failed"
    """The job has failed for good, unless an administrator retries or discards it."""
    ABORTED = "aborted"
    DISCARDED = "discarded"
    """An administrator has discarded the job after it had failed."""
    EXPIRED = "expired"
    """The job was not started before it expired."""


FINAL = "state IN ('done', 'aborted', 'discarded', 'expired')"
"""The condition for rows that will not change any more. The planner needs the index's condition, word for word."""

DROPPED = "state IN ('aborted', 'discarded', 'expired')"
"""The condition for final rows of jobs that have no effects. They are few, and listed by themselves."""


class now_ms(FunctionElement[int]):  # noqa: N801 - an SQL function
    """The database's current clock, in milliseconds since the epoch. Not the time of the transaction's begin."""

    type = BigInteger()
    inherit_cache = True


@compiles(now_ms, "postgresql")
def _postgresql_now(_element: Any, _compiler: Any, **_: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)"


@compiles(now_ms, "sqlite")
def _sqlite_now(_element: Any, _compiler: Any, **_: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"


class spread(FunctionElement[int]):  # noqa: N801 - an SQL function
    """A random number of milliseconds from 0 to `SPREAD`."""

    type = BigInteger()
    inherit_cache = True


SPREAD = 400


@compiles(spread, "postgresql")
def _postgresql_spread(_element: Any, _compiler: Any, **_: Any) -> str:
    return f"CAST(random() * {SPREAD} AS bigint)"


@compiles(spread, "sqlite")
def _sqlite_spread(_element: Any, _compiler: Any, **_: Any) -> str:
    return f"abs(random() % {SPREAD + 1})"


# Sorted by bytes. Ids need no language's order, and an index in one may break when the system's locales are updated.
# The primary key is what keeps effects from happening twice.
_Id = Text().with_variant(Text(collation="C"), "postgresql")


@cache
def table(name: str = NAME) -> Table:
    """The table of this name, ``tandem_jobs`` or ``schema.tandem_jobs``, in metadata of its own.

    The metadata also has the tables of pauses and of audit rows.

    To create it with a project's own Alembic: ``target_metadata = [Base.metadata, table().metadata]``.
    """
    schema, _, bare = name.rpartition(".")
    metadata = MetaData(schema=schema or None)
    add_control_tables(metadata, bare)
    return Table(
        bare,
        metadata,
        Column("id", _Id, primary_key=True),
        Column("enqueued_at", BigInteger, primary_key=True, autoincrement=False),
        Column("task", Text, nullable=False),
        Column("queue", Text, nullable=False),
        Column("state", String(9), nullable=False),
        Column("payload", LargeBinary),
        Column("due", BigInteger),
        Column("patience", BigInteger),
        Column("result", LargeBinary),
        Column("error", Text),
        Column("traceback", Text),
        Column("tries", Integer, nullable=False, server_default="0"),
        Column("history", Text),
        Column("started_at", BigInteger),
        Column("finished_at", BigInteger),
        Column("check_at", BigInteger),
        # Earlier versions use the next column, and may run beside this one during a deploy.
        Column("checks", Integer, nullable=False, server_default="0"),
        Column("parent", Text),
        Column("traceparent", Text),
        Index(f"{bare}_check", "check_at", **_where("state = 'pending'")),
        Index(f"{bare}_pending", "id", unique=True, **_where("state = 'pending'")),
        Index(f"{bare}_failed", "finished_at", **_where("state = 'failed'")),
        Index(f"{bare}_prune", "finished_at", **_where(FINAL)),
        Index(f"{bare}_parent", "parent", **_where("parent IS NOT NULL")),
        Index(f"{bare}_dropped", "finished_at", **_where(DROPPED)),
        # Each pending job leaves a dead row. The server's default waits for 20 % of the rows, a week's jobs: too many.
        **storage_parameters(autovacuum_vacuum_scale_factor=0.02),
    )


def _where(condition: str) -> dict[str, Any]:
    return {"postgresql_where": text(condition), "sqlite_where": text(condition)}
