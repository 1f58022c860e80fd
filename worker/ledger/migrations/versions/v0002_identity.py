"""the job that enqueued a job, and the trace that it was enqueued in"""

from typing import Any

from alembic.operations import Operations
from sqlalchemy import Column, Text, text

revision = "0002"
down_revision = "0001"


def upgrade(op: Operations, table: str, schema: str | None) -> None:
    op.add_column(table, Column("parent", Text), schema=schema)
    op.add_column(table, Column("traceparent", Text), schema=schema)
    where: Any = dict.fromkeys(("postgresql_where", "sqlite_where"), text("parent IS NOT NULL"))
    op.create_index(f"{table}_parent", table, ["parent"], schema=schema, **where)
