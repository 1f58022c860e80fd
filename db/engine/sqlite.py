"""SQLite as a database that several coroutines and processes share: BEGIN IMMEDIATE, WAL, busy_timeout.

A transaction takes the write lock when it begins, so no other writer can come between the read and the write of a
read-modify-write. A second writer waits for `busy_timeout`. WAL lets readers on other connections go on meanwhile.
(https://www.sqlite.org/wal.html, https://www.sqlite.org/lang_transaction.html)
"""

import time
from sqlite3 import SQLITE_BUSY, OperationalError
from typing import Any

from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.util import await_only

from db.engine.reset import driver_connection_of
from db.errors import DatabaseURLError, PoisonedTransactionError

BEGIN = "BEGIN IMMEDIATE"


def refuse_memory(url: URL) -> None:
    """Refuse ``:memory:``. All sessions would share its one connection, and so one transaction.

    Raises:
        DatabaseURLError: `url` names no file.
    """
    named = url.database or ":memory:"
    if named in (":memory:", "file::memory:") or url.query.get("mode") == "memory" or url.query.get("vfs") == "memdb":
        raise DatabaseURLError(
            "an in-memory SQLite database has one connection, so all sessions would share one transaction: "
            "use a file, e.g. sqlite+aiosqlite:///./app.db"
        )


def prepare(engine: Engine, busy_timeout: float) -> None:
    """Set up every connection of `engine`. `busy_timeout` is in seconds."""

    @event.listens_for(engine, "connect")
    def connected(dbapi_connection: Any, _record: Any) -> None:
        # The driver must not begin transactions by itself, as it begins them DEFERRED and late.
        dbapi_connection.isolation_level = None
        cursor = dbapi_connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {round(busy_timeout * 1000)}")
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()
        _write_ahead(dbapi_connection, time.monotonic() + busy_timeout)

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        connection.exec_driver_sql(BEGIN)

    @event.listens_for(engine, "commit")
    def refuse_lost_transaction(connection: Connection) -> None:
        # A full disk or an interrupt makes SQLite roll back by itself. COMMIT would then save nothing.
        driver_connection: Any = driver_connection_of(connection.connection.dbapi_connection)
        if driver_connection is not None and not driver_connection.in_transaction:
            raise PoisonedTransactionError


def _write_ahead(dbapi_connection: Any, deadline: float) -> None:
    """Switch the file to WAL mode.

    The first switch needs exclusive access, and SQLite does not always wait for that: of several connections that open
    a new file at once, some get "database is locked" whatever their `busy_timeout` is. An exclusive transaction does
    wait. (https://www.sqlite.org/c3ref/busy_handler.html)
    """
    while True:
        try:
            _run(dbapi_connection, "PRAGMA journal_mode = WAL")
        except OperationalError as error:
            if error.sqlite_errorcode != SQLITE_BUSY or time.monotonic() >= deadline:
                raise
        else:
            return
        _run(dbapi_connection, "BEGIN EXCLUSIVE; COMMIT")


def _run(dbapi_connection: Any, script: str) -> None:
    """Run `script` to its end. A cursor with unread rows would keep the file locked."""
    if hasattr(dbapi_connection, "run_async"):
        await_only(driver_connection_of(dbapi_connection).executescript(script))
    else:
        dbapi_connection.executescript(script)
