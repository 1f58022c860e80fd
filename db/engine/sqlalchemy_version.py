"""What SQLAlchemy 2.0 lacks of 2.1, or does differently. All other code of Tandem is the same on both."""

import re
from typing import Any

import sqlalchemy
import sqlalchemy.ext.asyncio
from sqlalchemy import AsyncAdaptedQueuePool

_IS_2_0 = sqlalchemy.__version__.startswith("2.0.")
_CLASS_OF_ASYNCPG = re.compile(r"<class 'asyncpg\.[\w.]+'>: ")

OPERATIONS = tuple(
    name
    for name in ("delete", "delete_all", "get", "get_one", "merge", "merge_all", "refresh", "run_sync")
    if hasattr(sqlalchemy.ext.asyncio.AsyncSession, name)  # 2.0 has neither delete_all nor merge_all
)
"""The methods of `AsyncSession` that talk to the database, besides those that others call."""

POOL_OF_AIOSQLITE = AsyncAdaptedQueuePool
"""The pool of connections to an SQLite file. Before 2.0.38 the default was `NullPool`, which keeps none."""


def asyncpg_error(error: Exception) -> Exception | None:
    """The error of SQLAlchemy's dialect for an error of asyncpg that came while connecting, or None for 2.1.

    2.1 makes it by itself. 2.0 makes one for the errors of statements only, and lets the others through as they are.
    """
    if not _IS_2_0:
        return None
    import asyncpg  # noqa: PLC0415 - a SQLite-only app has no asyncpg loaded
    from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi  # noqa: PLC0415 - likewise

    dbapi: Any = AsyncAdapt_asyncpg_dbapi(asyncpg)  # type: ignore[no-untyped-call]
    kinds = dbapi._asyncpg_error_translate  # noqa: SLF001 - it has no public name
    made: Any = next(kinds[kind] for kind in type(error).__mro__ if kind in kinds)(str(error))
    made.pgcode = made.sqlstate = getattr(error, "sqlstate", None)
    return made  # type: ignore[no-any-return]


def hide_class(*errors: BaseException | None) -> None:
    """Take the name of asyncpg's class from the text of these errors, where 2.0 puts it before the server's message."""
    for error in errors:
        if _IS_2_0 and error is not None and error.args and isinstance(error.args[0], str):
            error.args = (_CLASS_OF_ASYNCPG.sub("", error.args[0]), *error.args[1:])


def storage_parameters(**parameters: float) -> dict[str, Any]:
    """Storage parameters of a table in PostgreSQL, as arguments by name of `Table` and of Alembic's `create_table`.

    2.0 takes `postgresql_with` for indexes only. But it writes the text of `postgresql_using` unquoted where PostgreSQL
    expects the access method, which the parameters may follow.
    """
    if not _IS_2_0:
        return {"postgresql_with": parameters}
    values = ", ".join(f"{name} = {value}" for name, value in parameters.items())
    return {"postgresql_using": f"heap WITH ({values})"}
