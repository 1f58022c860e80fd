"""Pauses and audit rows, on PostgreSQL through both kinds of drivers, and on SQLite."""

import asyncio
from typing import Any

import pytest

import db
from worker.ledger.audit import Audit, AuditRow
from worker.ledger.pauses import PauseKind, PauseRow, Pauses

pytestmark = pytest.mark.usefixtures("database")

FAR = 2**52  # milliseconds since the epoch


def row(name: str = "mail", until: int | None = None, kind: PauseKind = PauseKind.QUEUE) -> PauseRow:
    return PauseRow(kind, name, 1_000, "ann", until, 7)


async def write(*rows: PauseRow) -> None:
    async with db.scope():
        for each in rows:
            await Pauses().write(await session(), each)


async def session() -> Any:
    database: Any = db.default_database()
    return await db.session(database)


class TestPauses:
    async def test_a_pause_is_read_as_it_was_written_until_its_end_or_its_deletion(self) -> None:
        """By kind and name; a second one takes the place of the first."""
        pauses = Pauses()
        await write(row(), row("over", until=1), row("later", until=FAR), row(kind=PauseKind.SCHEDULE))
        assert await pauses.read(PauseKind.QUEUE) == {"mail": row(), "later": row("later", until=FAR)}
        assert await pauses.read(PauseKind.QUEUE, ["mail", "over"]) == {"mail": row()}
        await write(row(until=FAR))
        assert (await pauses.read(PauseKind.QUEUE, ["mail"]))["mail"].until == FAR
        async with db.scope():
            ended = [await pauses.end(await session(), PauseKind.QUEUE, name) for name in ("mail", "over", "none")]
        assert ended == [True, False, False]
        assert list(await pauses.read(PauseKind.QUEUE)) == ["later"]
        assert list(await pauses.read(PauseKind.SCHEDULE)) == ["mail"]

    async def test_a_pause_that_is_rolled_back_does_not_exist(self) -> None:
        """It is part of the caller's transaction."""
        with pytest.raises(RuntimeError):
            async with db.scope():
                await Pauses().write(await session(), row())
                raise RuntimeError
        assert await Pauses().read(PauseKind.QUEUE) == {}


class TestAudit:
    async def test_rows_are_read_from_the_latest_on_page_by_page(self) -> None:
        """With all of their fields, and filtered by any of them."""
        audit = Audit()
        ids = [await audit.begin(AuditRow("ann", f"job.{name}", name, {"n": 1})) for name in ("abort", "retry")]
        await audit.set_outcome(ids[0], "done")
        retry, abort = await audit.read(before=None, limit=10)
        assert (retry["id"], retry["action"], retry["outcome"]) == (ids[1], "job.retry", None)
        assert (abort["actor"], abort["subject"], abort["detail"], abort["outcome"]) == (
            "ann",
            "abort",
            '{"n":1}',
            "done",
        )
        assert [each["id"] for each in await audit.read(before=ids[1], limit=10)] == ids[:1]
        assert [each["id"] for each in await audit.read(before=None, limit=1)] == ids[1:]
        assert len(await audit.read(before=None, limit=10, action="job.")) == 2
        assert len(await audit.read(before=None, limit=10, action="job.retry", actor="ann", subject=None)) == 1
        assert await audit.read(before=None, limit=10, action="jo%.") == []

    async def test_many_who_act_at_the_same_time_get_rows_of_their_own(self) -> None:
        """Ids are unique, and increase."""
        audit = Audit()
        ids = [await audit.begin(AuditRow("ann", "a", "s", {})) for _ in range(3)]
        if not db.default_database().is_sqlite:
            ids += await asyncio.gather(*(audit.begin(AuditRow("bob", "b", "s", {})) for _ in range(8)))
        assert len({*ids}) == len(ids)
