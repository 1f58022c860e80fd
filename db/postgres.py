"""What a PostgreSQL connection is opened with: limits that are set once, and cost no statement."""

from typing import Any
from uuid import uuid4

from db.errors import DatabaseUnreachableError


def asyncpg_arguments(
    *, connect_timeout: float, statement_timeout: float, idle_in_transaction_timeout: float, pooler: bool
) -> dict[str, Any]:
    """`connect_args` for asyncpg; all times in seconds.

    The client's own limit comes after the server's, so that a server that can still answer says what
    happened; it is there for the one that cannot.
    """
    arguments: dict[str, Any] = {
        "async_creator_fn": _connect,
        "timeout": connect_timeout,
        "command_timeout": statement_timeout + connect_timeout,
    }
    if pooler:
        # A backend of PgBouncer's transaction mode serves many clients in turn: names must not collide, and settings of
        # one session would be those of the next. https://www.pgbouncer.org/features.html
        return arguments | {
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": lambda: f"__{uuid4().hex}__",
        }
    return arguments | {
        "server_settings": {
            "statement_timeout": _milliseconds(statement_timeout),
            "idle_in_transaction_session_timeout": _milliseconds(idle_in_transaction_timeout),
        }
    }


def psycopg_arguments(
    *, connect_timeout: float, statement_timeout: float, idle_in_transaction_timeout: float, pooler: bool
) -> dict[str, Any]:
    """`connect_args` for psycopg; all times in seconds."""
    arguments: dict[str, Any] = {"connect_timeout": max(1, round(connect_timeout))}
    if pooler:
        return arguments | {"prepare_threshold": None}
    settings = {
        "statement_timeout": _milliseconds(statement_timeout),
        "idle_in_transaction_session_timeout": _milliseconds(idle_in_transaction_timeout),
    }
    return arguments | {"options": " ".join(f"-c {name}={value}" for name, value in settings.items())}


async def _connect(*args: Any, **kwargs: Any) -> Any:
    """Open a connection; what the network says becomes one error, which no error of a task's own can be taken for."""
    import asyncpg  # noqa: PLC0415 - a SQLite-only app has no asyncpg loaded

    try:
        return await asyncpg.connect(*args, **kwargs)
    except (OSError, TimeoutError) as error:
        raise DatabaseUnreachableError(
            f"no connection to PostgreSQL ({str(error) or type(error).__name__}): "
            "is it running, and is DATABASE_URL right?"
        ) from error


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))
