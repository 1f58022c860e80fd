"""The tables of the census."""

from datetime import datetime

from sqlalchemy import JSON, DateTime, ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import db


class Base(DeclarativeBase):
    """The tables of this project."""


class Scan(Base):
    """One request to index a folder."""

    __tablename__ = "scans"

    id: Mapped[int] = mapped_column(primary_key=True)
    folder: Mapped[str]
    jobs: Mapped[dict[str, str] | None] = mapped_column(JSON)
    """The id of the job that indexes each file, by path; None until `scan_folder` has found the files."""


class Module(Base):
    """One Python file that parses."""

    __tablename__ = "modules"

    id: Mapped[int] = mapped_column(primary_key=True)
    scan_id: Mapped[int | None] = mapped_column(ForeignKey("scans.id"), index=True)
    path: Mapped[str] = mapped_column(index=True)
    lines: Mapped[int]


class Definition(Base):
    """One class or function in a module."""

    __tablename__ = "definitions"

    id: Mapped[int] = mapped_column(primary_key=True)
    module_id: Mapped[int] = mapped_column(ForeignKey("modules.id"), index=True)
    kind: Mapped[str]
    """``class`` or ``function``."""
    name: Mapped[str]
    line: Mapped[int]


class Totals(Base):
    """The latest counts of `refresh_totals`, in one row."""

    __tablename__ = "totals"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    modules: Mapped[int]
    classes: Mapped[int]
    functions: Mapped[int]
    lines: Mapped[int]
    counted_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


async def create_tables() -> None:
    """Create the missing tables. A project in production uses migrations instead."""
    async with db.scope():
        session = await db.session()
        connection = await session.connection()
        await connection.run_sync(Base.metadata.create_all)
