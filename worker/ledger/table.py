"""The table of job rows.

1. A row is one job, known by its id AND its enqueue time: a freed id that is used again is another row.
2. `pending` is the only state that anything acts upon by itself; the others are final, but for `failed`, which may
   be retried by hand.
3. Each index holds only the rows that its reader is after: neither the relay nor the list of failures sees done ones.
"""

from enum import StrEnum
from functools import cache
from typing import Any

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, MetaData, String, Table, Text, text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

NAME = "tandem_jobs"


class State(StrEnum):
    """What is known of a job."""

    PENDING = "pending"
    """It is to run: Redis has it, or will be given it."""
    DONE = "done"
    """Its effects are committed. Nothing overwrites this."""
    FAILED = "failed"
    """For good; until somebody retries or discards it."""
    ABORTED = "aborted"
    DISCARDED = "discarded"
    """By hand, after it had failed."""
    EXPIRED = "expired"
    """It waited longer than it may."""


FINAL = "state IN ('done', 'aborted', 'discarded', 'expired')"
"""The rows that nothing will change any more: in the words of their index, by which the planner knows it."""


class now_ms(FunctionElement[int]):  # noqa: N801 - an SQL function
    """The database's clock, in milliseconds since the epoch; not that of the transaction's begin."""

    type = BigInteger()
    inherit_cache = True


@compiles(now_ms, "postgresql")
def _postgresql_now(_element: Any, _compiler: Any, **_: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)"


@compiles(now_ms, "sqlite")
def _sqlite_now(_element: Any, _compiler: Any, **_: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"


class spread(FunctionElement[int]):  # noqa: N801 - an SQL function
    """Milliseconds from 0 to `SPREAD`, by chance."""

    type = BigInteger()
    inherit_cache = True


SPREAD = 400


@compiles(spread, "postgresql")
def _postgresql_spread(_element: Any, _compiler: Any, **_: Any) -> str:
    return f"CAST(random() * {SPREAD} AS bigint)"


@compiles(spread, "sqlite")
def _sqlite_spread(_element: Any, _compiler: Any, **_: Any) -> str:
    return f"abs(random() % {SPREAD + 1})"


# By bytes: people expect no order of ids, and a primary key in a language's order may be broken by the next update of
# the system's locales. This one is what keeps effects from happening twice.
_Id = Text().with_variant(Text(collation="C"), "postgresql")


@cache
def table(name: str = NAME) -> Table:
    """The table of this name, ``tandem_jobs`` or ``schema.tandem_jobs``, in metadata of its own.

    A project's own Alembic takes it along: ``target_metadata = [Base.metadata, table().metadata]``.
    """
    schema, _, bare = name.rpartition(".")
    return Table(
        bare,
        MetaData(schema=schema or None),
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
        Column(
            "checks", Integer, nullable=False, server_default="0"
        ),  # of earlier versions, which a deploy may still run
        Index(f"{bare}_check", "check_at", **_where("state = 'pending'")),
        Index(f"{bare}_pending", "id", unique=True, **_where("state = 'pending'")),
        Index(f"{bare}_failed", "finished_at", **_where("state = 'failed'")),
        Index(f"{bare}_prune", "finished_at", **_where(FINAL)),
        # Each job that was pending leaves a dead row: the server's own 20 % of a week's jobs are too many to wait for.
        postgresql_with={"autovacuum_vacuum_scale_factor": 0.02},
    )


def _where(condition: str) -> dict[str, Any]:
    return {"postgresql_where": text(condition), "sqlite_where": text(condition)}
