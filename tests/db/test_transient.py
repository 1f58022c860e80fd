"""Errors for values that the server will never store. Other errors are tested where they occur."""

import asyncio
import secrets
from typing import Any

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError

import db
from db.transient import Transient, is_refused, transient
from tests.db.conftest import INSERT

NEVER = {"a NUL": "a\0b", "too long for an index": secrets.token_hex(8000)}


async def insert(database: db.Database[Any], words: str) -> None:
    async with db.scope():
        session = await db.session(database)
        if isinstance(session, db.Session):
            await asyncio.to_thread(session.execute, INSERT, {"words": words})
        else:
            await session.execute(INSERT, {"words": words})


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
class TestIsRefused:
    @pytest.mark.parametrize("words", NEVER.values(), ids=NEVER)
    async def test_values_that_the_server_never_stores_are_refused(
        self, database: db.Database[Any], driver: str, words: str
    ) -> None:
        """The server refuses some of them, and the driver others."""
        with pytest.raises(DBAPIError) as caught:
            await insert(database if driver == "asyncpg" else database.sync, words)
        assert is_refused(caught.value)

    async def test_value_of_another_row_is_not_refused(self, database: db.Database[Any], driver: str) -> None:
        """The same value may be stored once the other row is gone."""
        chosen = database if driver == "asyncpg" else database.sync
        await insert(chosen, "a")
        with pytest.raises(DBAPIError) as caught:
            await insert(chosen, "a")
        assert not is_refused(caught.value)


def test_connection_ended_between_two_messages_of_the_driver_is_lost() -> None:
    """asyncpg says so if the server ended the connection where it had begun an operation, COPY for example."""
    error = asyncpg.InternalClientError("cannot switch to state 21; another operation (2) is in progress")
    assert transient(error) is Transient.LOST
    assert transient(asyncpg.InternalClientError("no such codec")) is None


def test_group_is_ended_if_a_member_ended_its_connection() -> None:
    """A group would end its connection again if one of its members did."""
    lost, ended = db.DatabaseUnreachableError("lost"), db.ConnectionEndedError("it sat idle")
    assert transient(ExceptionGroup("both", [lost, ended])) is Transient.ENDED
    assert transient(ExceptionGroup("mixed", [ended, ValueError()])) is None
