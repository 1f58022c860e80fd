"""the table of job rows, and an index for each of its readers"""

from typing import Any

from alembic.operations import Operations
from sqlalchemy import BigInteger, Column, Integer, LargeBinary, String, Text, text

from db.engine.sqlalchemy_version import storage_parameters

revision = "0001"
down_revision = None

_INDEXES: dict[str, tuple[str, str]] = {
    "check": ("check_at", "state = 'pending'"),
    "pending": ("id", "state = 'pending'"),
    "failed": ("finished_at", "state = 'failed'"),
    "prune": ("finished_at", "state IN ('done', 'aborted', 'discarded', 'expired')"),
}


def upgrade(op: Operations, table: str, schema: str | None) -> None:
    op.create_table(
        table,
        Column("id", Text().with_variant(Text(collation="C"), "postgresql"), primary_key=True),
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
        Column("checks", Integer, nullable=False, server_default="0"),
        schema=schema,
        **storage_parameters(autovacuum_vacuum_scale_factor=0.02),
    )
    for name, (column, condition) in _INDEXES.items():
        where: Any = {"postgresql_where": text(condition), "sqlite_where": text(condition)}
        op.create_index(f"{table}_{name}", table, [column], unique=name == "pending", schema=schema, **where)
