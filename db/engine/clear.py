"""Drop all that a database holds: tables, views and enum types. For `db.testing`."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, MetaData, inspect


def drop_all(connection: Connection, schemas: Iterable[str] = ()) -> None:
    """Drop the tables, views and enum types of the default schema and of `schemas`, in the open transaction."""
    for schema in (None, *schemas):
        if connection.dialect.name == "postgresql":
            _drop_all_of_postgres(connection, schema)
        else:
            _drop_views(connection, schema)
            _drop_tables(connection, schema)


def _drop_all_of_postgres(connection: Connection, schema: str | None) -> None:
    inspector: Any = inspect(connection)
    for kind, names in (
        ("MATERIALIZED VIEW", inspector.get_materialized_view_names(schema)),
        ("VIEW", inspector.get_view_names(schema)),
        ("TABLE", inspector.get_table_names(schema)),
        ("TYPE", [enum["name"] for enum in inspector.get_enums(schema)]),
    ):
        if names:
            listed = ", ".join(_qualified(connection, name, schema) for name in names)
            connection.exec_driver_sql(f"DROP {kind} IF EXISTS {listed} CASCADE")


def _drop_views(connection: Connection, schema: str | None) -> None:
    for name in inspect(connection).get_view_names(schema):
        connection.exec_driver_sql(f"DROP VIEW {_qualified(connection, name, schema)}")


def _drop_tables(connection: Connection, schema: str | None) -> None:
    if connection.dialect.name == "sqlite":
        # Dropping a table deletes its rows. Rows of others may refer to them until those are dropped, too.
        connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
    tables = MetaData()
    tables.reflect(connection, schema=schema)
    tables.drop_all(connection, checkfirst=False)


def _qualified(connection: Connection, name: str, schema: str | None) -> str:
    preparer = connection.dialect.identifier_preparer
    return preparer.quote(name) if schema is None else f"{preparer.quote_schema(schema)}.{preparer.quote(name)}"
