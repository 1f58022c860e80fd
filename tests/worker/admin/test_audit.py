"""The audit, as people read it."""

import time
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

import db
from db.transient import sqlstate
from worker.admin.audit import AuditLog
from worker.admin.deployment import Deployment
from worker.ledger.time_limit import STATEMENT_LIMIT


async def test_reading_the_audit_takes_the_database_no_longer_than_its_limit(
    database: db.Database[Any], deployment: Deployment
) -> None:
    """Also where the table is locked, or so large that a filter takes long."""
    async with db.independent(database) as other:
        await other.execute(text("LOCK TABLE tandem_jobs_audit"))
        began = time.monotonic()
        with pytest.raises(DBAPIError) as error:
            await AuditLog(deployment).read(actor="ann")
    assert sqlstate(error.value) == "57014"
    assert STATEMENT_LIMIT - 0.1 < time.monotonic() - began < STATEMENT_LIMIT + 5
