"""an index of the few final jobs that are not done, so that lists and counts of them do not read the done ones"""

from typing import Any

from alembic.operations import Operations
from sqlalchemy import text

revision = "0004"
down_revision = "0003"


def upgrade(op: Operations, table: str, schema: str | None) -> None:
    condition = text("state IN ('aborted', 'discarded', 'expired')")
    where: Any = {"postgresql_where": condition, "sqlite_where": condition}
    op.create_index(f"{table}_dropped", table, ["finished_at"], schema=schema, **where)
