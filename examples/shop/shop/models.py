"""The tables of the shop."""

from datetime import datetime

from sqlalchemy import func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    state: Mapped[str] = mapped_column(default="new")
    parcel: Mapped[str | None] = mapped_column(default=None)
    placed_at: Mapped[datetime] = mapped_column(server_default=func.now())
