"""``ConnectionReset``: makes a returned connection as new, where a unit of work has changed its session state.

1. The statements (:mod:`db.engine.effects`) and a direct use of the driver's connection tell which connections have
   changed. All others cost nothing.
2. On PostgreSQL one round trip resets everything to the settings that the connection was opened with.
3. A connection that cannot be reset is replaced: a SQLite connection, which is cheap to open; a connection that a
   `connect` listener of the user's has set up in an unknown way; and a connection on which the reset fails.
"""

import logging
from typing import Any, Literal

from sqlalchemy import AdaptedConnection, Engine, event
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection, PoolResetState
from sqlalchemy.util.concurrency import in_greenlet

from db.engine.effects import Effect

logger = logging.getLogger("db")

Reset = Literal["changed", "always", "never"]
"""The connections that are reset when they are returned to the pool."""

_EFFECTS = "db.engine.effects"
_RESETTING = "db.resetting"
_REPLACE = "db.replace"
# Not DISCARD ALL, which would drop the statements that the drivers have prepared. RESET ALL leaves the role alone. Both
# RESET ALL and RESET ROLE go back to the values that the connection was opened with.
_RESET = """
    SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET ALL; CLOSE ALL; UNLISTEN *; DISCARD TEMP; DISCARD SEQUENCES;
    SELECT pg_advisory_unlock_all();
    DO $$ DECLARE left_over text; BEGIN
        FOR left_over IN SELECT name FROM pg_prepared_statements WHERE from_sql LOOP
            EXECUTE format('DEALLOCATE %I', left_over);
        END LOOP;
    END $$
"""
# Ids of driver connections that were used directly. Not all of them allow weak references.
_directly_used: set[int] = set()


def note_effects(info: dict[Any, Any], effects: Effect) -> None:
    """Note the possible effects of a statement on the connection with this `info`."""
    info[_EFFECTS] = info.get(_EFFECTS, Effect.NONE) | effects
    if Effect.SESSION_STATE in effects and _RESETTING in info:
        info[_RESETTING].listen()


def may_have(effect: Effect, info: dict[Any, Any]) -> bool:
    """Whether a statement may have had `effect` on the connection since it was taken from the pool."""
    effects = info.get(_EFFECTS)  # None is checked first, as a test of a flag takes ten times as long
    return effects is not None and effect in effects


def may_have_changed(connection: PoolProxiedConnection) -> bool:
    """Whether the state of the server's session may have changed since the connection was taken from the pool."""
    return may_have(Effect.SESSION_STATE, connection.info) or _is_used_directly(connection.dbapi_connection)


def _is_used_directly(dbapi_connection: Any) -> bool:
    return bool(_directly_used) and id(driver_connection_of(dbapi_connection)) in _directly_used


def driver_connection_of(dbapi_connection: Any) -> Any:
    """The driver's own connection. For Tandem alone: a user who asks SQLAlchemy for it is assumed to change it."""
    return getattr(dbapi_connection, "_connection", dbapi_connection)


def forget_effects(info: dict[Any, Any]) -> None:
    """Drop the noted effects of a returned connection."""
    info.pop(_EFFECTS, None)


class ConnectionReset:
    """The reset of an engine's returned connections.

    Args:
        engine: an engine that was made from a URL.
        which: see `Database`.
        timeout: seconds that a reset may take.
        pooler: PgBouncer stands between. A setting stays with a backend that serves another client by now.
    """

    def __init__(self, engine: Engine, which: Reset, *, timeout: float, pooler: bool) -> None:
        self._engine = engine
        self._always = which == "always"
        self._timeout = timeout
        self._pooler = pooler
        self._has_warned = False
        self._listens = False
        self._recording: Any = None
        # A public method of the dialect; there is no event for it.
        engine.dialect.get_driver_connection = self._get_driver_connection  # type: ignore[method-assign]
        event.listen(engine, "connect", self._connected)
        event.listen(engine, "checkin", self._replace)
        if self._always:
            self.listen()

    def listen(self) -> None:
        """Listen for returned connections from now on. Not before, as the event alone takes 3 us each time."""
        if not self._listens:
            self._listens = True
            event.listen(self._engine, "reset", self._reset)

    def _get_driver_connection(self, connection: Any) -> Any:
        self._note_direct_use(driver_connection_of(connection))
        return driver_connection_of(connection)

    def _note_direct_use(self, driver_connection: Any) -> None:
        _directly_used.add(id(driver_connection))
        self.listen()

    def _connected(self, dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
        record.info[_RESETTING] = self
        if isinstance(dbapi_connection, AdaptedConnection):
            # SQLAlchemy chooses the class of its adapted connection.
            self._recording = self._recording or self._recording_class(type(dbapi_connection))
            dbapi_connection.__class__ = self._recording
        # The use by listeners that have set the connection up does not count.
        _directly_used.discard(id(driver_connection_of(dbapi_connection)))

    def _recording_class(self, kind: Any) -> Any:
        """A subclass of `kind` that notes each direct use of the driver's connection."""
        note_direct_use = self._note_direct_use

        class Recording(kind):  # type: ignore[misc]  # a class that is known at run time
            __slots__ = ()

            @property
            def driver_connection(self) -> Any:
                note_direct_use(self._connection)
                return self._connection

            def run_async(self, fn: Any) -> Any:
                note_direct_use(self._connection)
                return super().run_async(fn)

        return Recording

    def _reset(self, dbapi_connection: Any, record: ConnectionPoolEntry, state: PoolResetState) -> None:
        if state.terminate_only or not self._is_due(dbapi_connection, record):
            return
        if self._pooler:
            self._warn()
            return
        if not state.asyncio_safe or not self._can_reset(dbapi_connection):
            record.info[_REPLACE] = True
            return
        try:
            if not state.transaction_was_reset:
                dbapi_connection.rollback()
            self._forget(dbapi_connection)
        except Exception as error:  # noqa: BLE001 - a connection that cannot be reset is not used again
            logger.info("a connection could not be reset and is replaced: %s: %s", type(error).__name__, error)
            record.info[_REPLACE] = True

    def _replace(self, dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
        _directly_used.discard(id(driver_connection_of(dbapi_connection)))
        forget_effects(record.info)
        if record.info.pop(_REPLACE, False) and dbapi_connection is not None:
            record.invalidate()

    def _is_due(self, dbapi_connection: Any, record: ConnectionPoolEntry) -> bool:
        return self._always or may_have(Effect.SESSION_STATE, record.info) or _is_used_directly(dbapi_connection)

    def _can_reset(self, dbapi_connection: Any) -> bool:
        is_reachable = in_greenlet() or not isinstance(dbapi_connection, AdaptedConnection)
        return self._engine.dialect.name == "postgresql" and is_reachable and not self._has_foreign_listeners()

    def _has_foreign_listeners(self) -> bool:
        listeners = self._engine.pool.dispatch.connect
        return any(not _module(listener).startswith(("sqlalchemy.", "db.")) for listener in listeners)

    def _forget(self, dbapi_connection: Any) -> None:
        if not isinstance(dbapi_connection, AdaptedConnection):
            _reset_in_thread(dbapi_connection)
        elif self._engine.dialect.driver == "asyncpg":
            AdaptedConnection.run_async(dbapi_connection, self._reset_by_asyncpg)
        else:
            AdaptedConnection.run_async(dbapi_connection, _reset_by_psycopg)

    async def _reset_by_asyncpg(self, driver_connection: Any) -> None:
        if id(driver_connection) in _directly_used:
            await driver_connection.reset(timeout=self._timeout)  # removes its listeners as well
        await driver_connection.execute(_RESET, timeout=self._timeout)

    def _warn(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "session state was set behind a pooler, and reaches the next client of that server connection: "
                "use SET LOCAL, set_config(..., true), pg_advisory_xact_lock() and ON COMMIT DROP"
            )


async def _reset_by_psycopg(driver_connection: Any) -> None:
    before = driver_connection.autocommit
    await driver_connection.set_autocommit(True)
    await driver_connection.execute(_RESET, prepare=False)
    await driver_connection.set_autocommit(before)


def _reset_in_thread(driver_connection: Any) -> None:
    before = driver_connection.autocommit
    driver_connection.autocommit = True
    driver_connection.execute(_RESET, prepare=False)
    driver_connection.autocommit = before


def _module(listener: Any) -> str:
    return str(getattr(listener, "__module__", None) or "")
